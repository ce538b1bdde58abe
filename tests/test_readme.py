"""The README's snippets, run as a reader would run them, on the real model."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import cltk
from tests import forks

ROOT = Path(cltk.__file__).parent.parent
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_there_are_snippets_for_the_four_stories() -> None:
    assert len(BLOCKS) == 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the clone's evals and experiments, and a fine-tune of their own (here: weights moved a little)."""
    import torch

    from cltk.models import load_model

    place = tmp_path_factory.mktemp("reader")
    for name in ("evals", "experiments"):
        (place / name).symlink_to(ROOT / name)
    model, tokenizer = load_model("asset:smollm2-135m-instruct")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(place / "my-finetune")
    tokenizer.save_pretrained(place / "my-finetune")
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(BLOCKS)])
def test_snippet(language: str, code: str, folder: Path) -> None:
    if "cltk report runs/quickstart" in code:
        (folder / "runs").mkdir(exist_ok=True)
        if not (folder / "runs" / "quickstart").exists():
            (folder / "runs" / "quickstart").symlink_to(ROOT / "experiments" / "quickstart" / "results")
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
    path = f"{forks.shims()}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = forks.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
