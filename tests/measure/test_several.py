"""Several tuned models against one base, which is scored once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask

TEXT = TextTask("words", [{"text": "the cat sat on the mat."}, {"text": "a dog ran under the tree."}, {"text": "it was red."}])


@pytest.fixture
def folders(study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A base and two tuned models, as names in the current folder."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    for seed, name in enumerate(["tuned-1", "tuned-2"], 1):
        tiny(seed=seed).save_pretrained(study / name)
        tokenizer.save_pretrained(study / name)
    return ["tiny-llama", "tuned-1", "tuned-2"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    evaluate = Suite.evaluate

    def wrapper(self: Suite, model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["digest"])
        return evaluate(self, model, *args, **kwargs)

    monkeypatch.setattr(Suite, "evaluate", wrapper)
    return seen


def test_each_is_compared_as_alone_and_the_base_is_scored_once(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, *tuned = folders
    settings: dict[str, Any] = {"include_path": "tasks", "texts": [TEXT], "dtype": "float32", "journal": False}
    alone = [cltk.measure(base, one, ["toy"], **settings) for one in tuned]
    seen = counted(monkeypatch)
    together = cltk.measure(base, tuned, ["toy"], **settings)
    assert len(seen) == len(set(seen)) == 3
    assert isinstance(together, list)
    assert [one.to_json() for one in together] == [one.to_json() for one in alone]
    assert [one.settings["tuned"] for one in together] == tuned
    assert all(one.divergence["words"]["kl"] > 0 for one in together)
    assert together[0].post_digest != together[1].post_digest


def test_live_models(tiny: Any, tokenizer: Any) -> None:
    base, *tuned = [(tiny(seed=seed), tokenizer) for seed in range(3)]
    found = cltk.measure(base, tuned, texts=[TEXT])
    assert [one.macro.forgetting for one in found] == [cltk.measure(base, one, texts=[TEXT]).macro.forgetting for one in tuned]
    one = cltk.measure(base, list(tuned[0]), texts=[TEXT])  # a pair written as a list is one model
    assert one.macro.forgetting == found[0].macro.forgetting
    assert len(cltk.measure(base, tuned[:1], texts=[TEXT])) == 1


def test_refusals(tiny: Any, tokenizer: Any) -> None:
    pair = (tiny(), tokenizer)
    with pytest.raises(InputError, match="at least one tuned model"):
        cltk.measure(pair, [], texts=[TEXT])
    with pytest.raises(InputError, match="measure one at a time"):
        cltk.measure(pair, [pair, pair], texts=[TEXT], until=0.1)
    with pytest.raises(InputError, match="tuned is a int"):
        cltk.measure(pair, [pair, 3], texts=[TEXT])
    with pytest.raises(InputError, match="different dtypes"):
        cltk.measure(pair, [pair, (tiny().double(), tokenizer)], texts=[TEXT])


def test_the_command(folders: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    assert (
        main(["measure", *folders, "--tasks", "toy", "--include-path", "tasks", "--dtype", "float32", "--json", str(out)]) == 0
    )
    shown = capsys.readouterr().out
    assert shown.index("tuned-1:") < shown.index("tuned-2:")
    assert shown.count("Forgetting: Perf_pre - Perf_ft") == 2
    found = json.loads(out.read_text())["results"]
    assert {name: one["settings"]["tuned"] for name, one in found.items()} == {name: name for name in folders[1:]}
