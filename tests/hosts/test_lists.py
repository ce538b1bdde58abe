"""What stands where a list of methods is expected, and what callbacks do with a model that has methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import cltk
from cltk import tensors
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError
from tests.conftest import sentences


@pytest.fixture
def make(tiny: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """A Trainer of three steps in two micro-batches each."""
    pairs = [{"q": f"{s} why", "a": f" {s.split()[0]}"} for s in sentences(24, seed=5)]
    rows = tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")

    def of(**given: Any) -> Any:
        args = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to="none",
            use_cpu=True, save_strategy="no", disable_tqdm=True, seed=7, remove_unused_columns=False,
            dataloader_pin_memory=False, learning_rate=3e-3,
        )  # fmt: skip
        set_seed(7)
        return Trainer(
            model=tiny(), args=args, train_dataset=rows[:16], eval_dataset=rows[16:], data_collator=Collator(1),
            processing_class=tokenizer, **given,
        )  # fmt: skip

    return of


def trained(trainer: Any) -> str:
    trainer.train()
    return tensors.digest(trainer.model)


def test_a_generator_is_a_list(make: Any, tiny: Any) -> None:
    """Read once while it was checked, it would leave the trainer without methods."""
    expected = trained(cltk.attach(make(), [cltk.L2SP(1.0)]))
    assert trained(cltk.attach(make(), (one for one in [cltk.L2SP(1.0)]))) == expected
    assert trained(make()) != expected
    model = tiny()
    methods = (one for one in [cltk.Freeze(1)])
    assert len(cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), methods).mitigators) == 1


@pytest.mark.parametrize(
    ("given", "said"), [(cltk.KL(0.1), "expected a list of mitigators, got KL"), (None, "got NoneType"), ("kl", "'k' is not a")]
)
def test_what_is_no_list(given: Any, said: str, make: Any, tiny: Any) -> None:
    with pytest.raises(InputError, match=said):
        cltk.attach(make(), given)
    model = tiny()
    with pytest.raises(InputError, match=said):
        cltk.session(model, torch.optim.SGD(model.parameters(), 0.1), given)


class Uses(TrainerCallback):
    """Uses the model between two steps, as callbacks that show samples or scores do."""

    def __init__(self, how: str) -> None:
        self.how, self.trainer = how, None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        ids = torch.arange(5, 15)[None]
        if self.how == "generate":
            model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=1)
        elif self.how == "evaluate":
            self.trainer.evaluate()  # type: ignore[attr-defined]
        else:
            with torch.no_grad():
                model.train()(input_ids=ids, labels=ids)


OLD = sentences(40, seed=1)
METHODS: dict[str, Any] = {
    "kl": lambda: [cltk.KL(0.5)],
    "token_weights": lambda: [cltk.TokenWeights("talr")],
    "sam": lambda: [cltk.SAM(0.05)],
    "lora, kl": lambda: [cltk.LoRA(4), cltk.KL(0.5)],
    "replay_loss": lambda: [cltk.ReplayLoss(OLD)],
}


@pytest.mark.parametrize("name", METHODS)
def test_a_callback_that_uses_the_model_changes_nothing(name: str, make: Any) -> None:
    expected = trained(cltk.attach(make(), METHODS[name]()))
    for how in ("generate", "evaluate", "forward"):
        callback = Uses(how)
        callback.trainer = trainer = make(callbacks=[callback])
        assert trained(cltk.attach(trainer, METHODS[name]())) == expected, how
