"""A peft model: the methods see its trainable parameters, the adapters.

python experiments/examples/adapter.py
"""

from common import options, prepare, tokens
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import cltk
from cltk.data import Collator, pad_id

given = options(__doc__)
model, tokenizer, rows = prepare(given)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer = Trainer(
    model=model,
    args=TrainingArguments(given.out, max_steps=given.steps, learning_rate=1e-3, report_to="none", save_strategy="no"),
    train_dataset=tokens(rows, tokenizer),
    data_collator=Collator(pad_id(tokenizer)),
    processing_class=tokenizer,
)
cltk.attach(trainer, [cltk.Replay(given.old, 0.1), cltk.EWC(1.0, {"memory": given.old, "samples": 16})])
trainer.train()
