"""What needs no lm-eval runs where there is none; what needs it says so in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import cltk
from cltk.cli import main
from cltk.measure.requires import LM_EVAL, needs_lm_eval

ROOT = Path(cltk.__file__).parent.parent

SCRIPT = """
import sys
sys.modules["lm_eval"] = None  # an import of it raises
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
import cltk
from cltk.cli import main
from cltk.measure import stats

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
arguments = TrainingArguments(sys.argv[2], max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
trainer = Trainer(model=model, args=arguments, train_dataset=rows)
cltk.attach(trainer, [cltk.EWC(0.1, {"memory": rows, "samples": 2}), cltk.LowLR(0.5)])
trainer.train()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
with cltk.session(model, optimizer, [cltk.L2SP(0.1)]) as s:
    inputs = {key: torch.tensor([value]) for key, value in rows[0].items()}
    output = model(**inputs)
    (output.loss + s.loss(inputs, output.logits)).backward()
    s.before_step()
    optimizer.step()
    s.after_step()
print(stats.holm([0.01, 0.04]))
examples = sys.argv[3]
sys.exit(main(["compare", *sorted(__import__("glob").glob(examples + "/*"))]))
"""


def test_methods_statistics_and_compare_run_without_lm_eval(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_folder), str(tmp_path), str(ROOT / "evals/examples/lm_eval")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Forgetting: Perf_pre - Perf_ft" in done.stdout


@pytest.mark.parametrize("installed", ["0.4.9", "0.4.11", None])
def test_too_old_an_lm_eval_is_one_line(
    installed: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    def version(name: str) -> str:
        if name != "lm_eval":
            return "1.0"
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    assert main(["measure", str(tiny_folder), str(tiny_folder), "--tasks", "local_arc_easy"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"lm-eval {LM_EVAL} or newer" in said
    assert (installed or "none") in said


def test_the_installed_one_is_new_enough() -> None:
    needs_lm_eval()
