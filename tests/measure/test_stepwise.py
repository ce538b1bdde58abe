"""`cltk measure --until`: looks at more and more documents of two tiny models, until the interval is narrow enough."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import cltk
from cltk.cli import main
from cltk.data import read_rows
from cltk.errors import InputError
from cltk.measure.evaluate import TextTask
from cltk.models import load_model


@pytest.fixture(autouse=True)
def tuned(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start model with its weights moved a little, beside it; 480 rows of old text."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    Path("long.jsonl").write_text("".join(Path("old.jsonl").read_text().replace('"text": "', f'"text": "{k} ') for k in "abcd"))
    model, tokenizer = load_model("tiny-llama")
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    model.save_pretrained("tuned")
    tokenizer.save_pretrained("tuned")


def measured(**changes: object) -> cltk.measure.Result:
    given = {"texts": [TextTask("old", read_rows("long.jsonl"))], "kl_rows": 0, "dtype": "float32", **changes}
    return cltk.measure("tiny-llama", "tuned", **given)


def test_it_stops_when_the_interval_is_narrow_enough() -> None:
    whole = measured()
    assert whole.macro.n == 480
    half = 1.7 * (whole.macro.ci[1] - whole.macro.ci[0]) / 2
    found = measured(until=half)
    assert 64 <= found.macro.n < 480
    assert found.macro.ci[1] - found.macro.forgetting <= half
    assert found.macro.forgetting - found.macro.ci[0] <= half
    assert found.macro.ci[0] < whole.macro.forgetting < found.macro.ci[1]
    note = found.notes[-1]
    assert note.startswith(f"until {half:g}: {found.macro.n} of 480 documents were scored in ")
    assert note.endswith(f"{480 - found.macro.n} were not needed")
    known = {row["doc_hash"]: row["nll_d"] for row in whole.samples["old"]}
    assert [row["nll_d"] for row in found.samples["old"]] == pytest.approx(
        [known[row["doc_hash"]] for row in found.samples["old"]], abs=1e-5
    )  # the documents of the whole, scored as there
    d = np.array([row["nll_d"] for row in found.samples["old"]])
    assert found.macro.forgetting == pytest.approx(d.mean())
    assert found.macro.ci[1] - found.macro.ci[0] >= 2 * 1.96 * d.std(ddof=1) / np.sqrt(len(d))
    assert found.settings["until"] == half


def test_all_documents_may_be_too_few() -> None:
    found = measured(until=1e-6)
    assert found.macro.n == 480
    assert "0 were not needed; all of them may still be too few" in found.notes[-1]


def test_every_task_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["measure", "tiny-llama", "tuned", "--text", "long.jsonl", "--tasks", "toy", "--include-path", "tasks"]
    assert main([*command, "--kl-rows", "0", "--until", "0.05", "--every-task"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of 492 documents were scored" in out  # toy has 12, whose accuracy no look can make that narrow
    assert main([*command, "--every-task"]) == 2
    assert "give until too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": 0}, "half width: expected a number above 0"),
        ({"until": float("nan")}, "half width"),
        ({"until": 0.1, "tasks": ["toy"], "include_path": "tasks", "limit": 5}, "until: limit takes the first"),
        ({"until": 0.1, "tasks": ["toy"], "include_path": "tasks", "num_fewshot": 2}, ""),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    if not message:  # all 12 documents of toy are in the first look: their prompts are those of the whole
        measured(**changes)
        return
    with pytest.raises(InputError, match=message):
        measured(**changes)


def test_looks_of_a_chat_template(tokenizer) -> None:
    """Its prompts depend on the tokeniser, which nobody handed on."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"
    pairs = [(load_model(name)[0], own) for name in ("tiny-llama", "tuned")]
    found = cltk.measure(*pairs, ["toy"], include_path="tasks", texts=[], until=0.3, chat_template=True, kl_rows=0)
    assert "looks" in found.notes[-1] or "look" in found.notes[-1]
