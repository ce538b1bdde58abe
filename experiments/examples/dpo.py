"""A TRL DPOTrainer: preference tuning forgets too.

python experiments/examples/dpo.py
"""

from common import options, prepare
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

import cltk

given = options(__doc__)
model, tokenizer, rows = prepare(given)
others = [row["completion"] for row in rows[1:]] + [rows[0]["completion"]]
pairs = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other}
    for row, other in zip(rows, others, strict=True)
    if row["completion"] != other
]
trainer = DPOTrainer(
    model=model,
    args=DPOConfig(
        given.out, max_steps=given.steps, learning_rate=5e-6, per_device_train_batch_size=4, max_length=256, report_to="none",
        save_strategy="no", bf16=False,
    ),
    train_dataset=Dataset.from_list(pairs),
    processing_class=tokenizer,
)  # fmt: skip
cltk.attach(trainer, [cltk.L2SP(0.1), cltk.WiSEFT(0.8)])
trainer.train()
