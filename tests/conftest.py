"""Tiny models, tokeniser, tasks and data, made on the spot: no network, no download, the same on every machine."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ONEDNN = os.environ.get("CLTK_TEST_ONEDNN")  # "1", "0": products by oneDNN wherever that is measured, or nowhere

WORDS = "the a cat dog bird sat ran flew on under over mat tree house red blue green big small and then it was not".split()

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # a chat template


def checkpointing() -> str:
    """What the installed transformers calls recomputing activations (5.20 renamed it)."""
    from transformers import PreTrainedModel

    return (
        "activation_checkpointing" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient_checkpointing"
    )


def checkpointing_on(model: Any) -> None:
    getattr(model, f"{checkpointing()}_enable")()


def is_checkpointing(model: Any) -> bool:
    return bool(getattr(model, f"is_{checkpointing()}"))


def sentences(n: int, seed: int = 0) -> list[str]:
    """n seeded sentences over a small vocabulary."""
    import random

    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 14))) + "." for _ in range(n)]


@pytest.fixture(autouse=True, scope="session")
def products() -> Iterator[None]:
    """By default what is faster on this machine, as for users; CLTK_TEST_ONEDNN decides for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        if ONEDNN:
            patch.setattr("cltk.run.machine.onednn_gain", lambda: 9.0 if ONEDNN == "1" else 0.0)
        if ONEDNN == "0":
            patch.setattr("cltk.forward.products.exact", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_list_of_packages() -> Iterator[None]:
    """lm-eval's simple_evaluate lists what is installed, by a pip of its own: a second or more that no test looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pip_packages", lambda *_: ("pip3", ""))
        yield


@pytest.fixture(autouse=True, scope="session")
def tasks_read_once() -> Iterator[None]:
    """lm-eval reads its 14,000 task files for every index, 7 to 13 s: once for all tests of a process."""
    from lm_eval import tasks
    from lm_eval.tasks._index import TaskIndex

    build, packaged, known = TaskIndex.build, Path(tasks.__file__).parent, dict[str, Any]()

    def remembered(paths: Any, **settings: Any) -> Any:
        first, *own = list(paths) or [None]
        if first != packaged or settings:
            return build(paths, **settings)
        if not known:
            known.update(build([packaged]))
        return {**known, **build(own)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "build", staticmethod(remembered))
        yield


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Every Trainer.train() collects garbage, 0.4 s among the objects of torch and transformers: these are set aside."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE of 300 tokens, trained on the sentences above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        sentences(200), trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>", "<pad>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", bos_token="<end>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """tiny(kind="llama", seed=0, **config): a random causal language model of some 20,000 parameters."""

    def make(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
        import torch
        import transformers as t

        torch.manual_seed(seed)
        if kind == "llama":
            config = t.LlamaConfig(
                vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            cls: Any = t.LlamaForCausalLM
        elif kind == "gpt2":
            config = t.GPT2Config(
                vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )  # fmt: skip
            cls = t.GPT2LMHeadModel
        else:
            config = t.GPTNeoXConfig(
                vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            cls = t.GPTNeoXForCausalLM
        for key, value in changes.items():
            setattr(config, key, value)
        return cls(config)

    return make


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny: Any, tokenizer: Any) -> Path:
    """A tiny Llama with its tokeniser, saved as users save models."""
    folder = tmp_path / "tiny-llama"
    tiny().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hold(check: Callable[..., None], names: Iterable[str], *given: Any) -> None:
    """check(name, *given) of every name; those that fail are named together, each with its first line."""
    wrong = {}
    for name in names:
        try:
            check(name, *given)
        except AssertionError as error:
            wrong[name] = str(error).split("\n")[0]
    assert not wrong


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def study(tmp_path: Path, tiny_folder: Path) -> Path:
    """A folder with everything an experiment needs: model, new-task rows, old text, an lm-eval task."""
    old = sentences(120, seed=1)
    write_jsonl(tmp_path / "old.jsonl", [{"text": s, "document": f"d{i // 4}"} for i, s in enumerate(old)])
    pairs = [{"question": f"{s} what?", "answer": f" {s.split()[0]} {i % 7}"} for i, s in enumerate(sentences(90, seed=2))]
    write_jsonl(tmp_path / "new.jsonl", pairs)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    documents = [
        {"q": s, "choices": [w, "zebra", "violet"], "label": 0} for s, w in zip(sentences(12, seed=3), WORDS, strict=False)
    ]
    write_jsonl(tasks / "docs.jsonl", documents)
    (tasks / "toy.yaml").write_text(
        "task: toy\ndataset_path: json\ndataset_kwargs: {data_files: {validation: " + str(tasks / "docs.jsonl") + "}}\n"
        "validation_split: validation\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: label\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    return tmp_path


TINY = """\
model: {pretrained: tiny-llama}
data:
  train: {path: new.jsonl, prompt: question, completion: answer}
  validation: 0.15
  heldout: 0.2
  max_length: 64
"""  # the model and the new task of `study`

EXPERIMENT = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, max_steps: 6, per_device_train_batch_size: 4, save_strategy: "no", logging_steps: 2}
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 12, cluster: document}]
  include_path: tasks
  limit: 8
grid:
  mitigators:
    plain: []
    low_lr: [low_lr: {factor: 0.5}]
    early_stopping: [early_stopping: {patience: 1, every: 2, budget: 5.0, memory: old.jsonl, limit: 8}]
    replay: [replay: {memory: old.jsonl, fraction: 0.25}]
    ewc: [ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 8, block: 32, normalize: mean}}]
keep_model: false
"""
)


@pytest.fixture
def experiment(study: Path) -> Path:
    """The YAML of a whole experiment at test scale: five methods, seconds."""
    file = study / "experiment.yaml"
    file.write_text(EXPERIMENT)
    return file
