"""`torchrun -m cltk measure`: two ranks share the documents; one process's result to the last bit in float32, written once.

Situations from EleutherAI/lm-evaluation-harness#573 and #2292 (torchrun that runs everything twice, or waits for ever) and
#2148 (other numbers with more devices).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import ONEDNN, sentences, write_jsonl
from tests.distributed.launch import ROOT

TASK = ["--tasks", "toy", "--include-path", "tasks", "--dtype", "float32"]


BROKEN = """
import os, sys
from cltk.cli import main
from cltk.measure.evaluate import Suite
evaluate = Suite.evaluate
def fails(*given, **named):
    if os.environ["RANK"] == "1":
        raise OSError(28, "No space left")
    return evaluate(*given, **named)
Suite.evaluate = fails
sys.exit(main(sys.argv[1:]))
"""


def call(folder: Path, ranks: int, *words: str, by: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CLTK_CACHE": str(folder / f"cache{ranks}{by}")}
    several = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *several, *([by] if by else ["-m", "tests.distributed.sharding"]), "measure", *words]
    return forks.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def plain(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    return {key: found[key] for key in found if key != "checksum"}


@pytest.mark.slow
@pytest.mark.skipif(bool(ONEDNN), reason="the processes decide about products themselves")
def test_two_ranks_give_what_one_gives(study: Path, tiny: Any, tokenizer: Any) -> None:
    tiny(seed=1).save_pretrained(study / "tuned")
    tokenizer.save_pretrained(study / "tuned")
    write_jsonl(study / "held.jsonl", [{"text": " ".join(sentences(1 + i % 4, seed=i))} for i in range(40)])
    words = ["tiny-llama", "tuned", *TASK, "--text", "held.jsonl", "--output-path", "files"]
    alone, both = (call(study, n, *words, "--json", f"{n}.json") for n in (1, 2))
    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    assert plain(study / "1.json") == plain(study / "2.json")
    assert both.stdout == alone.stdout
    assert both.stdout.count("Forgetting: Perf_pre") == 1
    assert len(list((study / "files").rglob("results_*.json"))) == 4  # two models, two calls
    wrong = call(study, 2, "tiny-llama", "./nowhere", *TASK)
    assert wrong.stderr.count("cltk: ") == 1
    assert "model ./nowhere: no such folder" in wrong.stderr
    assert wrong.returncode != 0
    (study / "broken.py").write_text(BROKEN)
    done = call(study, 2, "tiny-llama", "tuned", *TASK, by="broken.py")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("cltk: ")]
    assert said == ["cltk: rank 1: OSError: [Errno 28] No space left"]
