"""2,000 broken experiment files: a valid plan or one line, never a traceback, never a file."""

from __future__ import annotations

import copy
import datetime
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cltk.errors import InputError
from cltk.mitigate import MITIGATORS
from cltk.run.config import load_config
from cltk.run.plans import Plan
from tests.conftest import write_jsonl

EXPERIMENT: dict[str, Any] = {
    "model": {"pretrained": "tiny-llama", "dtype": "float32"},
    "data": {
        "train": {"path": "new.jsonl", "prompt": "question", "completion": "answer"},
        "validation": 0.15,
        "heldout": {"path": "new.jsonl", "limit": 5},
        "max_length": 64,
    },
    "seed": 1,
    "train": {"learning_rate": 3.0e-3, "max_steps": 6, "save_strategy": "no"},
    "mitigators": [{"low_lr": {"factor": 0.5}}, "rewarm"],
    "evals": {
        "retain": ["toy", {"text": "old.jsonl", "name": "old_text", "limit": 12}],
        "include_path": "tasks",
        "limit": 8,
        "margins": {"acc": 0.01},
    },
    "speed": {"packing": "auto", "onednn": False},
    "grid": {
        "mitigators": {"plain": [], "ewc": [{"ewc": {"strength": 1.0, "importance": {"memory": "old.jsonl", "samples": 8}}}]},
        "train.learning_rate": [1.0e-3],
    },
    "keep_model": False,
}
NESTED: Any = 1
for _ in range(60):
    NESTED = [NESTED]
ODD = [
    None, True, False, "", "x" * 3000, 0, -1, 10**30, -(10**400), 1e308, float("inf"), float("nan"), 0.5, "1e-5", "no", [],
    {}, [[]], {"a": 1}, [1, "a", None], NESTED, datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 12), b"\x00\xff",
    {1, 2},
    "asset:brown/x.jsonl", "asset:", "../../x", "/etc/hostname", "\u202e\U0001f600é", "{question}", "a\nb", "!!python/none", 12,
    {None: 1}, {1: 2}, {"": ""}, [{"ewc": None}], [{"ewc": {}, "low_lr": {}}], ["nothing"], "plain", [[0, 1], [2]],
]  # fmt: skip
LINES = [
    "a: &a [*a]", "<<: {seed: 3}", "<<: *none", "? [a, b]\n: c", "? {a: b}\n: c",
    "x: !!python/object/apply:os.system ['touch pwned']",
    "seed: !!python/name:os.system", "seed: !function os.system", "day: 2026-01-01", "seed: 0x1F", "seed: 1_000", "seed: 1:30",
    "\tseed: 1", "- seed", "--- ", "...", "%YAML 1.1", "seed: 1", "keep_model: yes", "model: &m {pretrained: t}", "x: *m",
    "big: &b [1,1,1,1,1,1,1,1,1]\nbigger: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nbiggest: [*c,*c,*c,*c,*c,*c,*c,*c]",
    "\x00", "\ufeff", "#",
    "seed: !!binary aGk=", "seed: !!set {a, b}", "seed: !!omap [a: 1]", "seed: !!timestamp x", "seed: !!int x", "{", "]",
    "'", '"', "|",
    "base: kill.yaml", "base: x.yaml", "base: [x]", "stages: []", "stages: [{name: a}]", "= : 1", "seed: =", "? ", ": ",
    "!", "*", "&",
]  # fmt: skip
NAMES = sorted({"seed", "grid", "base", "stages", "mitigators", "évals", "SEED", "", "a.b", "__class__", *MITIGATORS})


def paths(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything in a tree stands."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from paths(value, (*above, key))


def training_arguments() -> list[str]:
    from transformers import TrainingArguments

    return [field.name for field in fields(TrainingArguments) if field.init]


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """The experiment above with one to four things wrong with it."""
    tree = copy.deepcopy(EXPERIMENT)
    for _ in range(draw(st.integers(0, 3))):
        _change(draw, tree)
    text = yaml.safe_dump(
        tree, allow_unicode=True, sort_keys=False, default_flow_style=draw(st.sampled_from([None, True, False]))
    )
    for _ in range(draw(st.integers(0, 2))):
        text = _scribble(draw, text)
    raw = text.encode("utf-8", errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=6)) + raw[at:]
    return raw


def _change(draw: st.DrawFn, tree: dict[str, Any]) -> None:
    known = list(paths(tree))
    if not known:
        return
    *above, key = draw(st.sampled_from(known))
    parent: Any = tree
    for part in above:
        parent = parent[part]
    match draw(st.sampled_from(["drop", "odd", "odd", "rename", "move", "add", "train"])):
        case "drop":
            del parent[key]
        case "odd":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        case "rename" if isinstance(parent, dict):
            name = draw(st.one_of(st.sampled_from(NAMES), st.text(max_size=5), st.just(f"{key}s"), st.just(str(key).upper())))
            parent[name] = parent.pop(key)
        case "move":
            tree[draw(st.sampled_from(NAMES))] = copy.deepcopy(parent[key])
        case "add" if isinstance(parent, dict):
            parent[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(st.sampled_from(ODD)))
        case "train" if isinstance(tree.get("train"), dict):
            tree["train"][draw(st.sampled_from(training_arguments()))] = copy.deepcopy(draw(st.sampled_from(ODD)))


def _scribble(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    at = draw(st.integers(0, len(lines)))
    match draw(st.sampled_from(["insert", "insert", "double", "cut", "indent", "characters"])):
        case "insert":
            lines.insert(at, draw(st.sampled_from(LINES)))
        case "double" if lines[at:]:
            lines.insert(at, lines[at])
        case "cut":
            lines = lines[:at]
        case "indent" if lines[at:]:
            lines[at] = " " * draw(st.integers(0, 5)) + lines[at].lstrip()
        case "characters":
            joined = "\n".join(lines)
            place = draw(st.integers(0, len(joined)))
            return joined[:place] + draw(st.text(max_size=4)) + joined[place + draw(st.integers(0, 4)) :]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    write_jsonl(folder / "new.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(20)])
    write_jsonl(folder / "old.jsonl", [{"text": f"old {i}"} for i in range(20)])
    (folder / "tasks").mkdir()
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*")}


@given(document=documents())
@settings(
    max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip
def check(document: bytes, folder: Path, seen: dict[str, int]) -> None:
    file = folder / "x.yaml"
    file.write_bytes(document)
    before = listing(folder)
    try:
        plan = load_config(file)
    except InputError as error:
        message = str(error)
        assert message.strip()
        assert len(message.split("\n")) == 1, message
        assert len(message) < 2000, message
        seen["refused"] += 1
    else:
        assert isinstance(plan, Plan)
        assert plan.cells
        assert all(Path("out", cell.name).parent == Path("out") for cell in plan.cells)
        seen["planned"] += 1
    assert listing(folder) == before


def test_a_plan_or_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    seen = {"refused": 0, "planned": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TrainingArguments' own advice
        check(folder=folder, seen=seen)
    assert sum(seen.values()) >= 2000
    assert min(seen.values()) > 100, seen  # both ends are reached
