"""A TRL SFTTrainer.

python experiments/examples/sft.py
"""

from common import options, prepare
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import cltk

given = options(__doc__)
model, tokenizer, rows = prepare(given)
trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        given.out, max_steps=given.steps, learning_rate=2e-4, max_length=256, report_to="none", save_strategy="no", bf16=False
    ),
    train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in rows]),
    processing_class=tokenizer,
)
cltk.attach(trainer, [cltk.Replay(given.old, 0.1), cltk.KL(0.2)])
trainer.train()
