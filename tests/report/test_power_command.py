"""`cltk power` and the numbers of a dry run, on the tiny model and task."""

import json
import re
from pathlib import Path

import pytest

from cltk.cli import main

TOY = ["power", "--tasks", "toy", "--include-path", "tasks"]


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def test_sizes_alone_need_no_weights(study, capsys):
    (study / "tiny-llama" / "model.safetensors").write_bytes(b"not weights")
    assert main([*TOY, "--limit", "8"]) == 0
    out = capsys.readouterr().out
    assert "80.1" in out  # six losses of eight are what an exact McNemar test needs, and binom.sf(5, 8, 0.801) is 0.8
    assert "920" in out  # documents for 3 pp; (2.8016 / 0.03)^2 * 0.1 = 873 is the normal approximation
    assert "warning: toy: cannot show an effect of 3.0 pp at n=8: the smallest detectable is 80.1 pp" in out
    assert "base" not in out


def test_enough_documents_give_no_warning(capsys):
    assert main([*TOY, "--effect", "0.9"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_base_is_scored_once_and_chance_is_said(study, capsys):
    """A random model on three choices: what it gets right is what guessing gets."""
    documents = [json.loads(line) for line in (study / "tasks" / "docs.jsonl").read_text().splitlines()]
    for i, document in enumerate(documents):
        document["label"] = i % 3
    (study / "tasks" / "docs.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    assert main([*TOY, "--base", "tiny-llama"]) == 0
    out = capsys.readouterr().out
    assert "base, %" in out
    assert "warning: toy: base score is at chance: nothing can be lost" in out
    journals = {path: path.read_bytes() for path in Path("cache").glob("journals/*.jsonl")}
    assert journals
    assert main([*TOY, "--base", "tiny-llama"]) == 0
    assert capsys.readouterr().out == out
    assert {path: path.read_bytes() for path in Path("cache").glob("journals/*.jsonl")} == journals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--effect", "3"], "effect is 3.0; give a share"),
        (["--discordance", "0"], "discordance is 0.0"),
        (["--limit", "0"], "limit: expected a whole number of documents from 1, got 0"),
        (["--base", "no-such-model"], "no-such-model"),
        (["--tasks", ","], "name at least one task"),
    ],
)
def test_refusals_are_one_line(arguments, message, capsys):
    assert main([*TOY, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_dry_run_says_what_can_be_seen(experiment, capsys):
    assert main(["run", str(experiment), "--out", "out", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "toy: 8 documents show a loss of 80.1 pp or more (if 10 % of them flip)" in out
    # nothing is known of a text's NLL before it is scored
    assert not re.search(r"old_text: \d+ documents show", out)
