"""Every host on its own scale: an extra loss that is the host's own doubles the gradient, token weights of 0 leave none.

float64 weights; the bound is on the largest element against the largest of the plain gradient.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from packaging.version import Version
from transformers import Trainer, TrainingArguments, set_seed

import cltk
from cltk.data import Collator, tokenize_pairs
from cltk.errors import InputError
from cltk.mitigate import Mitigator
from cltk.mitigate.interface import targets
from tests.conftest import sentences

BOUND = 1e-6


@pytest.fixture(autouse=True)
def _warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing\w*` is deprecated")  # TRL's own
        warnings.filterwarnings("ignore", message="The `KTO(Config|Trainer)` is now located in")  # TRL before 1.8
        yield


class Own(Mitigator):
    """The host's token losses once more."""

    def loss(self, inputs: Any, logits_NV: Any) -> Any:
        smoothing = inputs.get("smoothing", 0.0)
        return F.cross_entropy(logits_NV, targets(inputs), reduction="sum", label_smoothing=smoothing) / inputs["divisor"]


class Nothing(cltk.TokenWeights):
    """Every weight 0."""

    def __init__(self) -> None:
        super().__init__("dft", rescale=False)

    def _weights(self, inputs: Any, logits_NV: Any, nll_N: Any) -> Any:
        return torch.zeros_like(nll_N)


class Grads(Mitigator):
    """The gradient of the first optimiser step."""

    def grad(self, run: Any) -> None:
        self.found = [p.grad.clone() for p in run.model.parameters()]


def nll(logits: Any, labels: Any, reduction: str = "mean") -> Any:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return nll(outputs.logits, labels)


def sum_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return nll(outputs.logits, labels, "sum") / num_items_in_batch


class Usual(Trainer):
    """The common subclass: transformers does not divide its loss by the accumulation."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model(**inputs).loss


class Divided(Usual):
    loss_is_scaled_for_ga = False


class Pops(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        return nll(model(**inputs).logits, labels, "sum") / num_items_in_batch


class ByPosition(Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        outputs = model(inputs["input_ids"], inputs["attention_mask"])
        return nll(outputs.logits, inputs["labels"], "sum") / num_items_in_batch


class Masked(Trainer):
    """Keeps which tokens are answers to itself, as TRL's DPOTrainer before 1.15 does."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return nll(model(inputs["input_ids"], inputs["attention_mask"]).logits, labels)


def masks(rows: Any) -> Any:
    batch = Collator(1)(rows)
    return {"completion_mask": (batch.pop("labels") != -100).long(), **batch}


class Twice(Trainer):
    """Two forward passes of one batch, as in R-Drop."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return sum(model(**inputs, num_items_in_batch=num_items_in_batch).loss for _ in range(2)) / 2


class Focal(Trainer):
    """No sum of token losses."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        labels = inputs.pop("labels")
        return nll(model(**inputs).logits, labels) ** 2


HOSTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # class, arguments, what the constructor gets
    "plain": (Trainer, {}, {}),
    "smoothing": (Trainer, {"label_smoothing_factor": 0.2}, {}),
    "func mean": (Trainer, {}, {"compute_loss_func": mean_loss}),
    "func sum": (Trainer, {}, {"compute_loss_func": sum_loss}),
    "usual": (Usual, {}, {}),
    "divided": (Divided, {}, {}),
    "pops": (Pops, {}, {}),
    "by position": (ByPosition, {}, {}),
    "masked": (Masked, {}, {"data_collator": masks}),
    "twice": (Twice, {}, {}),
    "focal": (Focal, {}, {}),
}


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[dict[str, Any]]:
    """Completions of unequal lengths: micro-batches differ in their counted tokens."""
    pairs = [{"q": f"{s} why", "a": " " + " ".join(s.split()[: 1 + i % 7])} for i, s in enumerate(sentences(16, seed=5))]
    return tokenize_pairs(pairs, tokenizer, prompt="q", completion="a")


@pytest.fixture
def gradient(tiny: Any, tokenizer: Any, rows: Any, tmp_path: Path) -> Callable[..., list[torch.Tensor]]:
    """gradient(host, accumulation, methods): of the first step of a Trainer."""

    def of(host: str, accumulation: int, methods: list[Mitigator]) -> list[torch.Tensor]:
        cls, changes, given = HOSTS[host]
        args = TrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
            logging_strategy="no", **changes,
        )  # fmt: skip
        set_seed(1)
        trainer = cls(
            model=tiny().double(), args=args, train_dataset=rows, processing_class=tokenizer,
            **{"data_collator": Collator(1), **given},
        )  # fmt: skip
        seen = Grads()
        cltk.attach(trainer, [*methods, seen])
        trainer.train()
        return seen.found

    return of


def gap(a: list[torch.Tensor], b: list[torch.Tensor], factor: float) -> float:
    size = max(float(y.abs().max()) for y in b)
    return max(float((x - factor * y).abs().max()) for x, y in zip(a, b, strict=True)) / size


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
@pytest.mark.parametrize("host", HOSTS)
def test_the_hosts_loss_twice_is_twice_its_gradient(host: str, accumulation: int, gradient: Any) -> None:
    if host in ("twice", "focal"):  # what a token weighs cannot be seen: right where all rules agree, or a line
        if accumulation > 1:
            with pytest.raises(InputError, match=r"what one token weighs in the loss of (Twice|Focal) is not known"):
                gradient(host, accumulation, [Own()])
        if host == "focal" or accumulation > 1:
            return
    assert gap(gradient(host, accumulation, [Own()]), gradient(host, accumulation, []), 2.0) < BOUND


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("host", HOSTS)
def test_token_weights_of_nothing_leave_no_gradient(host: str, accumulation: int, gradient: Any) -> None:
    if host in ("twice", "focal"):
        with pytest.raises(InputError, match=r"Nothing: what one token weighs .* (2 times|a token weighs)"):
            gradient(host, accumulation, [Nothing()])
        return
    assert gap(gradient(host, accumulation, [Nothing()]), gradient(host, accumulation, []), 0.0) < BOUND


SFT: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing_factor": 0.2},
    "packing": {"packing": True, "packing_strategy": "wrapped", "max_length": 24},
    "padding_free": {"padding_free": True, "max_length": None},
    "whole": {"completion_only_loss": False},
    "assistant": {"assistant_only_loss": True},
    "dft": {"loss_type": "dft"},
}
TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture
def sft(tiny: Any, tokenizer: Any, tmp_path: Path) -> Callable[..., list[torch.Tensor]]:
    import copy

    from trl import SFTConfig, SFTTrainer

    texts = [(f"{s} why", " " + " ".join(s.split()[: 1 + i % 7])) for i, s in enumerate(sentences(16, seed=5))]

    def of(kind: str, accumulation: int, methods: list[Mitigator]) -> list[torch.Tensor]:
        rows: list[dict[str, Any]] = [{"prompt": q, "completion": a} for q, a in texts]
        own = copy.deepcopy(tokenizer)
        if kind == "assistant":
            own.chat_template = TURNS
            rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in texts]
        args = SFTConfig(
            str(tmp_path), **{"max_length": 64} | SFT[kind], max_steps=1, per_device_train_batch_size=2, use_cpu=True,
            gradient_accumulation_steps=accumulation, report_to="none", save_strategy="no", disable_tqdm=True, bf16=False,
            dataloader_pin_memory=False, logging_strategy="no", gradient_checkpointing=False,
        )  # fmt: skip
        set_seed(1)
        trainer = SFTTrainer(tiny().double(), args=args, train_dataset=Dataset.from_list(rows), processing_class=own)
        seen = Grads()
        cltk.attach(trainer, [*methods, seen])
        trainer.train()
        return seen.found

    return of


SFT_CASES = [(kind, n) for kind, n in itertools.product(SFT, (1, 4)) if kind == "plain" or n == 4]


@pytest.mark.filterwarnings("ignore:.*(packing|padding-free|attention|label_smoothing_factor).*")
@pytest.mark.parametrize(("kind", "accumulation"), SFT_CASES)
def test_trl(kind: str, accumulation: int, sft: Any) -> None:
    if kind == "dft":  # already reweighted
        with pytest.raises(InputError, match="no sum of the losses"):
            sft(kind, accumulation, [Nothing()])
        return
    plain = sft(kind, accumulation, [])
    assert gap(sft(kind, accumulation, [Own()]), plain, 2.0) < BOUND
    assert gap(sft(kind, accumulation, [Nothing()]), plain, 0.0) < BOUND


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
@pytest.mark.parametrize("by_items", [False, True])
def test_session(by_items: bool, accumulation: int, tiny: Any, rows: Any) -> None:
    batches = [Collator(1)(rows[2 * i : 2 * i + 2]) for i in range(accumulation)]
    items = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)

    def of(methods: list[Mitigator]) -> list[torch.Tensor]:
        model = tiny().double()
        with cltk.session(model, torch.optim.SGD(model.parameters(), lr=0.0), methods) as s:
            for batch in batches:
                logits = model(**batch).logits
                own = nll(logits, batch["labels"], "sum") / items if by_items else nll(logits, batch["labels"]) / accumulation
                told = {"items": items} if by_items else {}
                (own + s.loss(batch, logits, accumulation, **told)).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = of([])
    assert gap(of([Own()]), plain, 2.0) < BOUND
    assert gap(of([Nothing()]), plain, 0.0) < BOUND


class Mean(Mitigator):
    """The mean token loss of each micro-batch, and what it was taken of."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def loss(self, inputs: Any, logits_NV: Any) -> Any:
        self.seen.append({name: inputs[name] for name in ("input_ids", "attention_mask", "labels") if name in inputs})
        return F.cross_entropy(logits_NV, targets(inputs))


WORDS = [sentence.split() for sentence in sentences(16, seed=5)]
PAIRS = [{"prompt": f"{w[0]} {w[1]}", "chosen": " " + " ".join(w[2:4]), "rejected": " " + " ".join(w[3:])} for w in WORDS]
JUDGED = [
    {"prompt": f"{w[0]} {w[1]}", "completion": " " + " ".join(w[2 : 4 + i % 3]), "label": i % 2 == 0}
    for i, w in enumerate(WORDS)
]


@pytest.mark.parametrize("host", ["DPO", "KTO"])
@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_hosts_of_preferences(
    host: str, accumulation: int, tiny: Any, tiny_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Losses of pairs or judged answers, means over micro-batches: an extra loss is that of the completions, by hand."""
    import trl
    from transformers import AutoModelForCausalLM

    def of(methods: list[Mitigator]) -> list[torch.Tensor]:
        args = getattr(trl, f"{host}Config")(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, use_cpu=True, gradient_accumulation_steps=accumulation,
            report_to="none", save_strategy="no", disable_tqdm=True, bf16=False, dataloader_pin_memory=False,
            logging_strategy="no", gradient_checkpointing=False,
        )  # fmt: skip
        set_seed(1)
        model = AutoModelForCausalLM.from_pretrained(tiny_folder).double()
        rows = Dataset.from_list(PAIRS if host == "DPO" else JUDGED)
        trainer = getattr(trl, f"{host}Trainer")(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        seen = Grads()
        cltk.attach(trainer, [*methods, seen])
        trainer.train()
        return seen.found

    mean = Mean()
    if host == "KTO" and Version(trl.__version__) < Version("1.8"):  # no one says there which tokens are answers
        with pytest.raises(InputError, match=f"Mean: this release of TRL does not say which tokens of a {host}Trainer"):
            of([mean])
        return
    plain, both = of([]), of([mean])
    assert len(mean.seen) == accumulation
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).double()
    for batch in mean.seen:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert 0 < int((batch["labels"] != -100).sum()) < int(batch["attention_mask"].sum())
        (nll(logits, batch["labels"]) / accumulation).backward()
    extra = [a - b for a, b in zip(both, plain, strict=True)]
    assert gap(extra, [p.grad for p in model.parameters()], 1.0) < BOUND
