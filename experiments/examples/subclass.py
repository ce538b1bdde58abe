"""A Trainer of your own that overrides compute_loss: attached in the same way.

python experiments/examples/subclass.py
"""

from typing import Any

from common import options, prepare, tokens
from transformers import Trainer, TrainingArguments

import cltk
from cltk.data import Collator, pad_id


class Smoothed(Trainer):
    """The model's loss, with a tenth of it replaced by the mean over the vocabulary."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        counted = inputs["labels"][:, 1:] != -100
        uniform = -outputs.logits[:, :-1][counted].log_softmax(-1).mean()
        loss = 0.9 * loss + 0.1 * uniform
        return (loss, outputs) if return_outputs else loss


given = options(__doc__)
model, tokenizer, rows = prepare(given)
trainer = Smoothed(
    model=model,
    args=TrainingArguments(given.out, max_steps=given.steps, learning_rate=2e-4, report_to="none", save_strategy="no"),
    train_dataset=tokens(rows, tokenizer),
    data_collator=Collator(pad_id(tokenizer)),
    processing_class=tokenizer,
)
cltk.attach(trainer, [cltk.KL(0.2), cltk.L2SP(0.1)])
trainer.train()
