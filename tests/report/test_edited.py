"""Records of an edited YAML in one folder: told apart by what they were run with, never pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltk.errors import InputError
from cltk.report.groups import group_entries
from cltk.report.settings import settings
from cltk.report.sources import Entry


def record(rate: float = 1e-3, text: str = "aaaaaaaa", seed: int = 0) -> dict[str, Any]:
    config = {"model": {"pretrained": "m"}, "data": {"train": {"path": "new.jsonl"}}, "train": {"learning_rate": rate}}
    files = {"new.jsonl": "nnnnnnnn", "old.jsonl": text, "m": "mmmmmmmm"}
    return {
        "method": "plain", "seed": seed, "experiment": "x", "train": {"notes": {}}, "labels": {"seed": seed},
        "config": {**config, "mitigators": [], "evals": {"retain": [{"text": "old.jsonl"}]}},
        "digests": {"start_model": "s", "files": files}, "environment": {"cltk": "1"},
    }  # fmt: skip


def labels(*records: dict[str, Any]) -> list[str]:
    return [group.label for group in group_entries([Entry(one) for one in records])]


def test_what_differs_is_the_name() -> None:
    assert labels(record(), record(seed=1)) == ["plain"]
    assert labels(record(1e-3), record(2e-3)) == ["plain learning_rate=0.001", "plain learning_rate=0.002"]
    assert labels(record(), record(text="bbbbbbbb")) == ["plain old.jsonl=aaaaaa", "plain old.jsonl=bbbbbb"]


def test_matched_says_which_two_and_how_they_differ() -> None:
    entries = [Entry(record(rate), Path(f"out/{rate}/record.json")) for rate in (1e-3, 2e-3)]
    with pytest.raises(InputError) as found:
        settings(entries, "heldout", None)
    assert "out/0.001/record.json (learning_rate=0.001)" in str(found.value)
    assert "out/0.002/record.json (learning_rate=0.002)" in str(found.value)
    with pytest.raises(InputError, match="nothing that is known"):
        settings([entries[0], Entry(record(), Path("copy/record.json"))], "heldout", None)
