"""Starts two ranks on this machine, once an engine, and reads what they saved."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests import forks

ROOT = Path(__file__).parents[2]
RANKS = 2
Outcome = list[dict[str, Any]]  # one a rank


def launch(engine: str, folder: Path, jobs: list[str], seconds: float = 600) -> dict[str, Outcome]:
    """Every job's outcome on every rank. One that broke a rank is {"broke": the log's end}, and a new launch does the rest."""
    done: dict[str, Outcome] = {}
    while todo := [job for job in jobs if job not in done]:
        log = _run(engine, folder, todo, seconds)
        for job in todo:
            files = [folder / engine / f"{job}.{rank}.pt" for rank in range(RANKS)]
            if not all(file.exists() for file in files):
                done[job] = [{"broke": log}] * RANKS
                break
            done[job] = [torch.load(file) for file in files]
    return done


def _run(engine: str, folder: Path, jobs: list[str], seconds: float) -> str:
    """Run the ranks until all have ended, or one failed and the others with it; the end of the failed one's log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.distributed.worker", engine, str(folder), *jobs]
    logs = [folder / f"{engine}.{rank}.log" for rank in range(RANKS)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(forks.Popen(command, env=env, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT))
    failed = _first_failure(ranks, time.monotonic() + seconds)
    for process in ranks:
        process.kill()
        process.wait()
    return "" if failed is None else f"{engine}, rank {failed}: " + logs[failed].read_text()[-3000:]


def _first_failure(ranks: list[forks.Popen], until: float) -> int | None:
    while any(process.poll() is None for process in ranks):
        failed = [rank for rank, process in enumerate(ranks) if process.returncode]
        if failed or time.monotonic() > until:
            return failed[0] if failed else 0
        time.sleep(0.1)
    return next((rank for rank, process in enumerate(ranks) if process.returncode), None)
