"""python -m tests.survive.trials kill|full STUDY SEED TRIALS: strikes `cltk run` again and again; prints a JSON report.

Every folder gets runs that are struck until one of them ends by itself; then its results must be those of a run in peace.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cltk.data import assets, packages
from tests.survive.victim import SIGNALS, Striker, ended, start

FILE = "kill.yaml"
TRAINED = """\
train:
  learning_rate: 3.0e-3
  max_steps: 6
  per_device_train_batch_size: 4
  save_strategy: steps
  save_steps: 2
  logging_steps: 4
"""  # with checkpoints
TIMES = ("seconds", "runtime", "per_second", "peak_bytes", "sha256", "git_commit")
LIMITS = (8_000, 20_000, 60_000, 90_000, 200_000)  # bytes that a file may have; the log is one, too


def cleaned(value: Any) -> Any:
    """Without what no rerun repeats."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items() if not any(part in str(key) for part in TIMES)}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, Any]:
    """Every record and every scores.json, by path; and which other files there are, without dates."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*.json")):
        if file.name in ("record.json", "scores.json"):
            found[str(file.relative_to(out))] = cleaned(json.loads(file.read_text()))
    return found | {"files": files(out)}


def files(out: Path) -> dict[str, int]:
    """What a finished run leaves, and how often: no temporary file, no checkpoint, every file of lm-eval's once."""
    names = [str(path.relative_to(out)) for path in sorted(out.rglob("*")) if path.is_file()]
    return dict(Counter(name.split("_20")[0] for name in names))  # results_2026-...json, samples_toy_2026-...jsonl


class Trials:
    """Runs in folders of one study. `report` is what the test looks at."""

    def __init__(self, study: Path, seed: int) -> None:
        self.study, self.rng = study, random.Random(seed)
        self.report: dict[str, Any] = {"blows": [], "wrong": []}
        begun = time.monotonic()
        if (end := self.run("peace", Striker(study))) != "0":
            raise SystemExit(f"the run in peace ended with {end}:\n{self.log('peace').read_text()[-3000:]}")
        self.seconds = time.monotonic() - begun
        self.events = int(self.log("peace").with_suffix(".count").read_text())
        self.expected = results(study / "peace")

    def log(self, name: str) -> Path:
        return self.study / "logs" / f"{name}.log"

    def run(self, name: str, striker: Striker, after: tuple[float, str] | None = None, largest: int | None = None) -> str:
        """One `cltk run` in the folder `name`, struck by `striker` or by a signal after some seconds; how it ended."""
        self.log(name).parent.mkdir(exist_ok=True)
        env = {"CLTK_CACHE": str(self.study / f"cache-{name}"), "HF_DATASETS_CACHE": str(self.study / f"cache-{name}" / "hf")}
        process = start(["run", FILE, "--out", name], self.log(name), striker, env, largest)
        until = time.monotonic() + after[0] if after else None
        while True:
            done, status = os.waitpid(process, os.WNOHANG if until is not None else 0)
            if done:
                return ended(status)
            if until is not None and time.monotonic() > until:
                os.kill(process, SIGNALS[after[1]])  # type: ignore[index]
                until = None
            time.sleep(0.002)

    def finish(self, name: str, end: str) -> None:
        """The folder's last run ended by itself: are its results right?"""
        if end != "0":
            self.report["wrong"].append(f"{name}: ended with {end}: {self.log(name).read_text()[-1500:]}")
            return
        found = results(self.study / name)
        for key in sorted({*found, *self.expected}):
            if found.get(key) != self.expected.get(key):
                where = first_difference(self.expected.get(key), found.get(key), key)
                self.report["wrong"].append(f"{name}: {where}; blows: {[b for b in self.report['blows'] if b[0] == name]}")
        shutil.rmtree(self.study / name)
        shutil.rmtree(self.study / f"cache-{name}", ignore_errors=True)

    def kill(self, trials: int) -> None:
        """Half of the blows at a chosen file operation, half at a moment."""
        blows, folder = self.report["blows"], 0
        while len(blows) < trials:
            name, folder = f"out-{folder}", folder + 1
            while (end := self._strike(name)) in SIGNALS:
                pass
            self.finish(name, end)

    def _strike(self, name: str) -> str:
        blow = self.rng.choices(["kill", "term", "int"], [4, 1, 2])[0]
        share = self.rng.betavariate(1, 3)
        if len(self.report["blows"]) % 2:
            at = 1 + int(share * self.events)
            end, moment = self.run(name, Striker(self.study, at, blow)), f"file operation {at}"
        else:
            moment = f"{share * self.seconds:.3f} s"
            end = self.run(name, Striker(self.study), (share * self.seconds, blow))
        if end in SIGNALS:
            self.report["blows"].append([name, blow, moment])
        return end

    def full(self, trials: int) -> None:
        """The disk is full from a chosen operation on, or files may not grow; then there is room again."""
        for i in range(trials):
            name = f"full-{i}"
            if i < len(LIMITS):
                end, what = self.run(name, Striker(self.study), largest=LIMITS[i]), f"files up to {LIMITS[i]} bytes"
            else:
                at = 1 + int(self.rng.random() * self.events)
                end, what = self.run(name, Striker(self.study, at, "full")), f"full at file operation {at}"
            said = self.log(name).read_text()
            last = (said.strip().split("\n") or [""])[-1]
            self.report["blows"].append([name, what, end, last])
            plain = end == "0" or (end in ("1", "2") and last.startswith("cltk: "))
            if not plain or "Traceback" in said:
                self.report["wrong"].append(f"{name}, {what}: ended with {end}: {said[-1500:]}")
            self.finish(name, self.run(name, Striker(self.study)))


def first_difference(old: Any, new: Any, where: str) -> str:
    """Where two trees part."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            if old.get(key) != new.get(key):
                return first_difference(old.get(key), new.get(key), f"{where}.{key}")
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return first_difference(a, b, f"{where}[{i}]")
    return f"{where}: {str(old)[:300]} expected, {str(new)[:300]} found"


def toy_asset(study: Path) -> None:
    """An asset called `toy`, whose download is a copy of STUDY/toy-1.0-py3-none-any.whl."""
    wheel = study / "toy-1.0-py3-none-any.whl"

    def build(archive: Path, folder: Path) -> None:
        for name, file in packages.members(archive, "data/*"):
            (folder / Path(name).name).write_bytes(file.read())

    packages._run = lambda command, folder: shutil.copyfile(wheel, folder / wheel.name)  # type: ignore[assignment]
    assets.ASSETS["toy"] = assets.Asset("toy", "pypi", "toy", "1.0", wheel.name, packages.sha256(wheel), "MIT", "a toy", build)


def import_everything() -> None:
    """What a run imports, so that a fork has it. Nothing is computed: threads do not survive a fork."""
    import accelerate
    import datasets
    import lm_eval.evaluator
    import lm_eval.loggers
    import lm_eval.models.huggingface
    import lm_eval.tasks
    import peft
    import rich.console
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer

    import cltk.cli
    import cltk.hosts.trainer
    import cltk.measure.scoring
    import cltk.mitigate
    import cltk.report.api
    import cltk.run.checkpoints
    import cltk.run.experiment
    import cltk.run.speed

    named = (accelerate, datasets, lm_eval, peft, rich, torch, transformers, cltk)
    assert all((*named, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer))


def main() -> None:
    kind, study, seed, trials = sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3]), int(sys.argv[4])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(study)
    toy_asset(study)
    import_everything()
    done = Trials(study, seed)
    getattr(done, kind)(trials)
    print("REPORT " + json.dumps(done.report | {"seconds": done.seconds, "events": done.events}))


if __name__ == "__main__":
    main()
