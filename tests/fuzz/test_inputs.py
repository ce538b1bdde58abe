"""Broken task folders, data files and model folders, 1,000 of each: a plan or one line, never a traceback, never code.

The fast tests take the first hundred; `-m slow` takes all.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cltk.data import read_rows, tokenize_pairs
from cltk.errors import InputError
from cltk.measure.evaluate import Suite
from cltk.models import load_model
from cltk.run.estimate import Setup
from cltk.run.estimates import estimate_model
from tests.fuzz.test_yaml import ODD, paths

COUNTS = [100, pytest.param(1000, marks=pytest.mark.slow)]
SMALL = [value for value in ODD if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) < 100]
LINES = [
    "include: toy.yaml", "include: [x, y]", "<<: {task: a}", "group: toy", "class: x", "doc_to_text: !function evil.text",
    "doc_to_text: !%66unction evil.text", "x: !!python/object/apply:os.system ['touch pwned']", "\ttask: toy", "task: [a]",
    "doc_to_text: '{{ q.__class__ }}'", "doc_to_text: '{{'", "doc_to_choice: '{{ [1, 2 }}'", "metric_list: [{metric: ./x}]",
    "%TAG !f! !func", "---", "a: &a [*a]", "num_fewshot: 3", "generation_kwargs: {until: 3}", "output_type: generate_until",
]  # fmt: skip


def changed(tree: Any, rng: random.Random, odd: list[Any]) -> Any:
    """The tree with up to three values that are odd, gone or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(0, 3)):
        known = list(paths(tree))
        if not known:
            break
        *above, key = rng.choice(known)
        parent: Any = tree
        for part in above:
            parent = parent[part]
        if rng.random() < 0.3:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice(odd))
    return tree


def scribbled(raw: bytes, rng: random.Random) -> bytes:
    """The bytes with a few cut, doubled or replaced; or in another encoding."""
    for _ in range(rng.choice([0, 0, 1, 3])):
        at, to = sorted(rng.randint(0, len(raw)) for _ in range(2))
        raw = rng.choice([raw[:at] + raw[to:], raw[:to] + raw[at:], raw[:at] + rng.randbytes(rng.randint(1, 6)) + raw[at:]])
    if rng.random() < 0.05:
        raw = raw.decode(errors="replace").encode(rng.choice(["utf-16", "utf-16-le", "latin-1"]), errors="replace")
    return raw


def tried(count: int, one: Callable[[random.Random], Any], least: int = 5) -> None:
    """Run `one` on so many seeds; every failure is one InputError of one line, and both ends are reached."""
    ends = {"planned": 0, "refused": 0}
    for seed in range(count):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one(random.Random(seed))
        except InputError as error:
            said = str(error)
            ends["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            said = "a plan"
            ends["planned"] += 1
        assert said.strip(), seed
        assert len(said) < 3000, seed
        assert not Path("pwned").exists(), seed
    assert min(ends.values()) >= least, ends


@pytest.fixture(autouse=True)
def _folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


@pytest.mark.parametrize("count", COUNTS)
def test_task_folders(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import lm_eval.tasks

    rows = datasets.load_dataset("json", data_files={"validation": "tasks/docs.jsonl"})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *_, **__: rows if path == "json" else 1 / 0)
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(  # lm-eval's own index takes seconds, and has no part in this
        lm_eval.tasks, "TaskManager", lambda **given: manager(**(given | {"include_defaults": False}))
    )
    Path("tasks/evil.py").write_text("open('pwned', 'w')\n")
    tree = yaml.safe_load(Path("tasks/toy.yaml").read_text())

    def one(rng: random.Random) -> None:
        text = yaml.safe_dump(changed(tree, rng, ODD), allow_unicode=True, sort_keys=False).split("\n")
        for _ in range(rng.choice([0, 0, 1])):
            text.insert(rng.randint(0, len(text)), rng.choice(LINES))
        raw = "\n".join(text).encode(errors="surrogatepass")
        Path("tasks", "toy.yaml").write_bytes(scribbled(raw, rng))
        Suite(["toy"], include_path="tasks", limit=2, trust=False).digests()

    tried(count, one)


@pytest.mark.parametrize("count", COUNTS)
def test_data_files(count: int, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    kept = [{"question": f"what {i}", "answer": f" it {i}", "n": i} for i in range(4)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(kept), "kept.parquet")

    def one(rng: random.Random) -> None:
        kind = rng.choice(["jsonl", "json", "csv", "txt", "parquet"])
        rows = [changed(row, rng, SMALL) if rng.random() < 0.3 else row for row in kept]
        lines = [json.dumps(row, default=str, skipkeys=True) for row in rows]
        text = {
            "jsonl": "\n".join(lines),
            "json": "[" + ",".join(lines) + "]",
            "csv": "question,answer\n" + "\n".join(f'"{row.get("question")}",{row.get("answer")}' for row in rows),
            "txt": "\n\n".join(lines),
        }
        raw = text[kind].encode(errors="replace") if kind in text else Path("kept.parquet").read_bytes()
        Path(f"x.{kind}").write_bytes(scribbled(raw, rng))
        found = read_rows(f"x.{kind}")
        if kind != "txt":
            tokenize_pairs(found, tokenizer, prompt="question", completion="Q: {answer}", max_length=32, where="x")

    tried(count, one)


@pytest.mark.parametrize("count", COUNTS)
def test_model_folders(count: int) -> None:
    files = ("config.json", "tokenizer_config.json", "generation_config.json")
    kept = {name: json.loads(Path("tiny-llama", name).read_text()) for name in files}
    odd = [*SMALL, {"auto_map": {"AutoConfig": "evil.Evil"}}, "evil/kernel", {"quant_method": "evil"}]
    Path("tiny-llama/evil.py").write_text("open('pwned', 'w')\n")

    def one(rng: random.Random) -> None:
        for name in files:
            text = json.dumps(changed(kept[name], rng, odd), default=str, skipkeys=True)
            Path("tiny-llama", name).write_bytes(scribbled(text.encode(errors="replace"), rng))
        if rng.random() < 0.5:
            estimate_model("tiny-llama", Setup())
        else:
            load_model("tiny-llama")

    tried(count, one)
    shutil.rmtree("tiny-llama")
