"""A transformers Trainer: one line more.

python experiments/examples/trainer.py
"""

from common import options, prepare, tokens
from transformers import Trainer, TrainingArguments

import cltk
from cltk.data import Collator, pad_id

given = options(__doc__)
model, tokenizer, rows = prepare(given)
trainer = Trainer(
    model=model,
    args=TrainingArguments(given.out, max_steps=given.steps, learning_rate=2e-4, report_to="none", save_strategy="no"),
    train_dataset=tokens(rows, tokenizer),
    data_collator=Collator(pad_id(tokenizer)),
    processing_class=tokenizer,
)
cltk.attach(trainer, [cltk.Replay(given.old, 0.1), cltk.EWC(1.0, {"memory": given.old, "samples": 16})])
trainer.train()
print(trainer.cltk_plan.notes)
