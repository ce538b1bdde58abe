"""python -m tests.survive.crowd STUDY SEED WHAT...: `cltk run` several times on one folder, killed, stopped, asked to leave.

Prints a JSON report. Forked from a process that has imported everything, as in `victim`. Every child notes which trainings it
began and ended, who scored the start model and computed a Fisher.
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

from tests.survive.trials import first_difference, import_everything, results
from tests.survive.victim import Striker, ended, start

FILE, SILENCE = "crowd.yaml", 3.0


class Witness(Striker):
    """Strikes nobody; notes in `log` what is done."""

    def __init__(self, root: Path, log: Path) -> None:
        super().__init__(root)
        self.log = log

    def note(self, *words: str) -> None:
        with self.log.open("a") as file:  # one short write: whole
            file.write(" ".join([str(os.getpid()), *words]) + "\n")

    def install(self) -> None:
        from cltk import files
        from cltk.mitigate import source
        from cltk.run import cells

        files.SILENCE, files.BEAT, files.POLL = SILENCE, 0.3, 0.1
        train, evaluate, fisher = cells.train_cell, cells.Work._evaluate, source.fisher

        def trained(cell: Any, *args: Any, **more: Any) -> Any:
            self.note("train", cell.name)
            found = train(cell, *args, **more)
            self.note("trained", cell.name)
            return found

        def evaluated(work: Any, cell: Any, model: Any, tokenizer: Any, who: str, *more: Any) -> Any:
            self.note("score", who.replace(" ", "_"))
            return evaluate(work, cell, model, tokenizer, who, *more)

        def computed(*args: Any, **more: Any) -> Any:
            self.note("fisher", "ewc")
            return fisher(*args, **more)

        cells.train_cell, cells.Work._evaluate, source.fisher = trained, evaluated, computed  # type: ignore[assignment]


class Crowd:
    """Runs in the folders of one study. `report["wrong"]` is what the test looks at."""

    def __init__(self, study: Path, seed: int) -> None:
        self.study, self.rng = study, random.Random(seed)
        self.report: dict[str, Any] = {"wrong": [], "ends": {}, "notes": {}}
        begun = time.monotonic()
        if (end := self.wait(self.begin("serial", "serial"))) != "0":
            raise SystemExit(f"the serial run ended with {end}:\n{(study / 'serial.log').read_text()[-3000:]}")
        self.seconds = time.monotonic() - begun
        self.expected = results(study / "serial")

    def begin(self, out: str, log: str, *more: str) -> int:
        env = {"CLTK_CACHE": str(self.study / "cache"), "HF_DATASETS_CACHE": str(self.study / "cache" / log)}
        witness = Witness(self.study, self.study / f"{out}.notes")
        return start(["run", FILE, "--out", out, *more], self.study / f"{log}.log", witness, env)

    @staticmethod
    def wait(process: int) -> str:
        return ended(os.waitpid(process, 0)[1])

    def notes(self, out: str) -> Counter[str]:
        lines = (self.study / f"{out}.notes").read_text().splitlines()
        return Counter(line.partition(" ")[2] for line in lines)

    def until(self, out: str, words: str, seconds: float = 120.0) -> int:
        """Until somebody has noted this: who."""
        file, end = self.study / f"{out}.notes", time.monotonic() + seconds
        while time.monotonic() < end:
            for line in file.read_text().splitlines() if file.exists() else ():
                if words in line:
                    return int(line.split()[0])
            time.sleep(0.01)
        raise SystemExit(f"{out}: nobody noted {words!r}")

    def compare(self, out: str, ends: list[str], right: set[str]) -> None:
        self.report["ends"][out], self.report["notes"][out] = ends, dict(self.notes(out))
        said = "\n".join(log.read_text()[-800:] for log in sorted(self.study.glob(f"{out}*.log")))
        if set(ends) - right:
            self.report["wrong"].append(f"{out}: ended with {ends}: {said}")
        found = results(self.study / out)
        for key in sorted({*found, *self.expected}):
            if found.get(key) != self.expected.get(key):
                self.report["wrong"].append(f"{out}: {first_difference(self.expected.get(key), found.get(key), key)}: {said}")
        shutil.rmtree(self.study / out)

    def together(self) -> None:
        """Three at once: every cell is trained once, the start model scored once, the Fisher computed once."""
        ends = [self.wait(one) for one in [self.begin("three", f"three-{i}") for i in range(3)]]
        for what, count in self.notes("three").items():
            if count != 1 and not what.startswith("score"):
                self.report["wrong"].append(f"three: {what}: {count} times")
        if self.notes("three")["score start_model"] != 1:
            self.report["wrong"].append("three: the start model was scored more than once, or never")
        self.compare("three", ends, {"0"})

    def shares(self) -> None:
        """Three shares, of which two are killed and begun again."""
        running = {i: self.begin("shares", f"shares-{i}", "--cells", f"{i}/3") for i in range(3)}
        for i in (0, 1):
            time.sleep(self.rng.uniform(0.2, 0.5) * self.seconds)
            os.kill(running[i], signal.SIGKILL)
            self.wait(running[i])
            running[i] = self.begin("shares", f"shares-{i}-again", "--cells", f"{i}/3")
        self.compare("shares", [self.wait(one) for one in running.values()], {"0"})

    def killed(self) -> None:
        """One of three is killed in a training; the others take its cell over."""
        running = [self.begin("killed", f"killed-{i}") for i in range(3)]
        time.sleep(0.1)
        who = self.until("killed", "train ")
        os.kill(who, signal.SIGKILL)
        self.compare("killed", [self.wait(one) for one in running], {"0", "kill"})

    def stopped(self) -> None:
        """One of two is stopped in a training until the other has done everything; woken, it writes nothing."""
        running = [self.begin("stopped", f"stopped-{i}") for i in range(2)]
        who = self.until("stopped", "train ")
        os.kill(who, signal.SIGSTOP)
        (other,) = (one for one in running if one != who)
        ends = [self.wait(other)]
        before = {path: path.stat().st_mtime_ns for path in (self.study / "stopped").rglob("*") if path.is_file()}
        os.kill(who, signal.SIGCONT)
        ends.append(self.wait(who))
        after = {path: path.stat().st_mtime_ns for path in (self.study / "stopped").rglob("*") if path.is_file()}
        if before != after:
            changed = sorted(str(path) for path in {*before, *after} if before.get(path) != after.get(path))
            self.report["wrong"].append(f"stopped: it wrote {changed}")
        self.compare("stopped", ends, {"0"})

    def asked(self) -> None:
        """One of two is asked to leave; what it began goes on from its checkpoint in the other, or in the same command."""
        running = [self.begin("asked", f"asked-{i}") for i in range(2)]
        who = self.until("asked", "train ")
        os.kill(who, signal.SIGUSR1)
        ends = [self.wait(one) for one in running]
        self.compare("asked", [*ends, self.wait(self.begin("asked", "asked-again"))], {"0", "term"})
        if "term" not in ends:
            self.report["wrong"].append(f"asked: nobody left: {ends}")


def main() -> None:
    study, seed = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    os.chdir(study)
    import_everything()
    crowd = Crowd(study, seed)
    for what in sys.argv[3:]:
        getattr(crowd, what)()
    print("REPORT " + json.dumps(crowd.report | {"seconds": crowd.seconds}))


if __name__ == "__main__":
    main()
