"""An evaluation killed by SIGKILL continues, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import WORDS, sentences, write_jsonl


@pytest.mark.slow
def test_killed_in_the_middle(study: Path) -> None:
    rows = [
        {"q": f"{s} {i}", "choices": [WORDS[i % 20], "zebra", "violet"], "label": 0} for i, s in enumerate(sentences(800, 4))
    ]
    write_jsonl(study / "tasks" / "docs.jsonl", rows)

    def command(cache: str, out: str, start: Any = forks.Popen) -> Any:
        arguments = ["measure", "tiny-llama", "tiny-llama", "--tasks", "toy", "--include-path", "tasks", "--json", out]
        return start(
            [sys.executable, "-m", "cltk", *arguments], cwd=study, env={**os.environ, "CLTK_CACHE": str(study / cache)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    assert command("whole", "whole.json", subprocess.Popen).wait() == 0  # its strings have other hashes
    victim = command("killed", "killed.json")
    journals = study / "killed" / "journals"
    while not any(file.stat().st_size for file in journals.glob("*.jsonl")):  # the first batch has been written
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (journal,) = journals.glob("*.jsonl")
    before = journal.read_bytes().rpartition(b"\n")[0]
    (reference,) = (study / "whole" / "journals").glob("*.jsonl")
    assert 0 < len(before) < len(reference.read_bytes())
    assert not (study / "killed.json").exists()
    assert command("killed", "killed.json").wait() == 0
    assert journal.read_bytes().startswith(before)  # nothing that was finished was scored again
    assert journal.read_bytes() == reference.read_bytes()
    assert json.loads((study / "killed.json").read_text()) == json.loads((study / "whole.json").read_text())


@pytest.mark.slow
def test_killed_while_it_generates(study: Path) -> None:
    """Texts that were written are not made again, and those of one model serve both."""
    write_jsonl(study / "tasks" / "docs.jsonl", [{"q": f"{s} {i}"} for i, s in enumerate(sentences(160, 4))])
    for name, tokens in {"toy": 8, "long": 160}.items():  # texts of one length end in one step; these in two, far apart
        (study / "tasks" / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: tasks/docs.jsonl}}}}\n"
            "validation_split: validation\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\n"
            f"generation_kwargs: {{max_gen_toks: {tokens}, until: ['zzz']}}\nmetric_list: [{{metric: exact_match}}]\n"
        )

    def command() -> forks.Popen:
        arguments = ["measure", "tiny-llama", "tiny-llama", "--tasks", "toy,long", "--include-path", "tasks"]
        return forks.Popen(
            [sys.executable, "-m", "cltk", *arguments], cwd=study, env={**os.environ, "CLTK_CACHE": str(study / "killed")},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    victim, journals = command(), study / "killed" / "journals"
    while not any(file.stat().st_size for file in journals.glob("*.jsonl")):
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (journal,) = journals.glob("*.jsonl")
    before = journal.read_bytes()
    assert 0 < before.count(b"\n") < 320
    assert command().wait() == 0
    assert journal.read_bytes().startswith(before.rpartition(b"\n")[0])
    assert journal.read_bytes().count(b"\n") == 320  # once for both models
