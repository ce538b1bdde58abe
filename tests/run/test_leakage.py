"""Rows that are learned from and measured on, against sets of tuples; what a run says of them, and what --strict refuses."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

import cltk
from cltk.cli import main
from cltk.run.leakage import Texts, compare
from tests.conftest import WORDS, sentences, write_jsonl


def reference(learned: list[str], measured: list[str]) -> tuple[int, int]:
    """Equal and near rows, the slow way."""
    rows = {name: [re.findall(r"\w+", text.lower()) for text in some] for name, some in (("l", learned), ("m", measured))}
    runs = {name: [{tuple(row[i : i + 13]) for i in range(len(row) - 12)} for row in some] for name, some in rows.items()}
    stands: dict[tuple[str, ...], int] = {}
    for some in runs["l"]:
        for run in some:
            stands[run] = stands.get(run, 0) + 1
    equal = [bool(row) and row in rows["l"] for row in rows["m"]]
    near = [not same and any(0 < stands.get(run, 0) <= 10 for run in some) for same, some in zip(equal, runs["m"], strict=True)]
    return sum(equal), sum(near)


def prose(rng: random.Random, words: int) -> str:
    return " ".join(f"{rng.choice(WORDS)}{rng.randint(0, 30)}" for _ in range(words))


@pytest.mark.parametrize("seed", range(5))
def test_against_sets_of_tuples(seed: int) -> None:
    rng = random.Random(seed)
    head = prose(rng, 20)  # a template: in every row
    learned = [f"{head} {prose(rng, rng.randint(0, 40))}" for _ in range(60)] + ["", "Yes.", "a b c"]
    measured = [f"{head} {prose(rng, rng.randint(0, 40))}" for _ in range(40)]
    measured += [
        learned[3].upper().replace(" ", "  "),
        f"{prose(rng, 9)}, {' '.join(learned[7].split()[22:36])}!",
        "YES",
        "",
        "a b",
    ]
    measured += [" ".join(learned[9].split()[21:33]), " ".join([*learned[9].split()[21:32], "no"])]
    vocabulary: dict[str, int] = {}
    (found,) = compare(learned, [Texts(measured, vocabulary)], vocabulary)
    assert found == reference(learned, measured)
    assert found[0] >= 2  # rows of the template alone are equal too


def compared(learned: list[str], measured: list[str]) -> tuple[int, int]:
    vocabulary: dict[str, int] = {}
    return compare(learned, [Texts(measured, vocabulary)], vocabulary)[0]


def test_no_run_crosses_from_row_to_row() -> None:
    words = [f"w{i}" for i in range(26)]
    learned = [" ".join(words[:7]), " ".join(words[7:])]
    assert compared(learned, [" ".join(words[:14])]) == (0, 0)
    assert compared(learned, [" ".join(words[7:20])]) == (0, 1)
    assert compared([], learned) == compared(learned, []) == (0, 0)
    assert compared([" ".join(f"other{i}" for i in range(14))], [" ".join(words)]) == (0, 0)  # no word is known


def test_templates_are_counted_over_all_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in 11 rows is a template, also where the rows are read a few at a time."""
    monkeypatch.setattr("cltk.data.rows.TEXT", 200)
    run = " ".join(f"w{i}" for i in range(13))
    for rows, near in ((10, 1), (11, 0)):
        assert compared([f"{i} {run} {i}" for i in range(rows)], [f"x {run}"]) == (0, near)


def test_a_hundred_thousand_rows_are_compared() -> None:
    """Pairs of rows would take hours."""
    rng = random.Random(0)
    pool = [f"w{i}" for i in range(20_000)]
    rows = [" ".join(rng.choices(pool, k=20)) for _ in range(100_000)]
    assert compared(rows, [*rows[:500], "x " + rows[7]]) == (500, 1)


@pytest.fixture
def clean(study: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study with a memory that shares nothing with the measured text."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    write_jsonl(study / "memory.jsonl", [{"text": text} for text in sentences(60, seed=11)])
    head = experiment.read_text().split("grid:")[0].replace("max_steps: 6", "max_steps: 1")
    experiment.write_text(
        head + "grid: {mitigators: {plain: [], replay: [replay: {memory: memory.jsonl, fraction: 0.25}]}}\nkeep_model: false\n"
    )
    return experiment


def leaky(file: Path) -> list[str]:
    return cltk.load(file, "out").leaks()


def test_sets_that_share_nothing_are_not_mentioned(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaky(clean) == []
    assert main(["run", str(clean), "--out", "out", "--strict"]) == 0
    assert "leakage" not in capsys.readouterr().err


def test_each_kind_of_leak_is_counted(clean: Path, study: Path) -> None:
    text, rows = clean.read_text(), [json.loads(line) for line in Path("new.jsonl").read_text().splitlines()]
    write_jsonl(study / "held.jsonl", [*rows[:9], {"question": "Quite another?", "answer": "yes"}])
    clean.write_text(
        text.replace("heldout: 0.2", "heldout: {path: held.jsonl}").replace(
            "validation: 0.15", "validation: {path: held.jsonl}"
        )
    )
    said = "of 10 rows 9 are in data.train too (but for case and punctuation)"
    assert leaky(clean)[:3] == [
        f"leakage: data.validation: {said}", f"leakage: data.heldout: {said}",
        "leakage: data.heldout: of 10 rows 10 are in data.validation too (but for case and punctuation)",
    ]  # fmt: skip

    old = [json.loads(line)["text"] for line in Path("old.jsonl").read_text().splitlines()]
    measured = [old[i * len(old) // 12] for i in range(12)]  # evenly spread, as evals.limit says
    other = [row for row in sentences(30, seed=12) if row not in old]
    write_jsonl(
        study / "memory.jsonl", [{"text": text} for text in [*other, measured[0].upper(), measured[5].replace(".", " !")]]
    )
    clean.write_text(text)
    assert leaky(clean) == ["leakage: old_text: of 12 rows 2 are in memory memory.jsonl too (but for case and punctuation)"]
    write_jsonl(study / "memory.jsonl", [{"text": text} for text in other])
    clean.write_text(text.replace("max_length: 64", "max_length: 128"))
    long = " ".join(sentences(4, seed=13))
    write_jsonl(study / "old.jsonl", [{"text": f"Once {long}", "document": "d"}] * 12)
    write_jsonl(study / "new.jsonl", [*rows, {"question": long, "answer": "so"}])
    (line,) = leaky(clean)
    assert line in ("leakage: old_text: of 12 rows 12 share 13 words in a row with data.train",
                    "leakage: old_text: of 12 rows 12 share 13 words in a row with data.validation")  # fmt: skip


def test_strict_refuses_and_else_it_is_said(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean.write_text(clean.read_text().replace("heldout: 0.2", "heldout: {path: new.jsonl}"))
    for more in ([], ["--dry-run"]):
        assert main(["run", str(clean), "--out", "out", "--strict", *more]) == 2
        said = capsys.readouterr().err
        assert len(said.strip().split("\n")) == 1
        assert "data.heldout: of 90 rows" in said
        assert not Path("out").exists()
    assert main(["run", str(clean), "--out", "out", "--dry-run"]) == 0
    assert "leakage: data.heldout: of 90 rows" in capsys.readouterr().out
    assert main(["run", str(clean), "--out", "out"]) == 0
    assert "leakage: data.heldout: of 90 rows" in capsys.readouterr().err
    for file in Path("out").glob("*/record.json"):
        (leak, *_) = json.loads(file.read_text())["leakage"]
        assert (leak["learned"], leak["measured"], leak["rows"]) == ("data.train", "data.heldout", 90)
        assert leak["equal"] > 0


@pytest.mark.parametrize("row", ['{"text": null}', "{}"])
def test_a_hole_in_a_memory_is_named_before_anything_is_scored(
    clean: Path, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Path("memory.jsonl")
    memory.write_text(memory.read_text() + row + "\n")
    assert main(["run", str(clean), "--out", "out"]) == 2
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 1
    assert "memory.jsonl, row 60" in said[0]
    assert not Path("out").exists()
