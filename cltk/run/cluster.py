"""The cells of an experiment in parallel on a Ray cluster: one task a cell, the same records as one after the other.

A task takes as many CPU cores as the driver has torch threads (OMP_NUM_THREADS), because the last bits of a sum depend on
their number, and one GPU where the cluster has any. Nodes must share the file system that holds the YAML's inputs and --out.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltk.errors import InputError
from cltk.run import records
from cltk.run.claims import Queue, Tell
from cltk.run.kept import FAILED

if TYPE_CHECKING:
    from cltk.run.experiment import ExperimentRun

RETRIES = 3  # of a task whose worker died; its checkpoints, scores and journals are taken up


def run_cells(
    run: ExperimentRun, todo: list[int], address: str, say: Tell, load: Callable[..., ExperimentRun]
) -> dict[int, str]:
    """Do the cells `todo`. Returns what went wrong, by the cell's place; its `failed.json` says the same.

    Args:
        run: the experiment, checked.
        todo: places in `run.cells`.
        address: of the cluster ("auto", "ray://host:port"), or "local" for one on this machine, that ends with the run.
        say: progress, when a cell ends.
        load: reads the experiment again in a worker, from (file, out, trust).

    Raises:
        InputError: Ray is not installed, the cluster is not there, or no node has the cores that a cell needs.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--ray: Ray is not installed; pip install 'cltk-forgetting[ray]'") from None
    import torch

    cores = torch.get_num_threads()
    try:
        where = {"num_cpus": os.cpu_count(), "include_dashboard": False} if address == "local" else {"address": address}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(f"--ray {address}: {str(error).splitlines()[0]}") from None
    try:
        _check_cores(ray, cores, address)
        return _run(ray, run, todo, cores, say, load)
    finally:
        ray.shutdown()


def _check_cores(ray: Any, cores: int, address: str) -> None:
    most = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if most < cores:
        raise InputError(
            f"--ray {address}: a cell takes {cores} cores (this process's torch threads) and the largest node has {most};"
            " set OMP_NUM_THREADS to fewer"
        )


def _run(
    ray: Any, run: ExperimentRun, todo: list[int], cores: int, say: Tell, load: Callable[..., ExperimentRun]
) -> dict[int, str]:
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(_task).options(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES, name="cltk cell")
    call = (
        partial(load, overrides=run.plan.overrides),
        str(Path.cwd()),
        str(run.plan.file),
        str(run.out),
        run.trust,
        sys.argv,
        cores,
    )
    work = run.work()
    folders = {order: work.base_folder(run.cells[order]) for order in todo}
    firsts = {folder: order for order, folder in reversed(folders.items())}  # scores the start model for all that share it
    bases = {folder: task.remote(call, order, True) for folder, order in firsts.items()}
    places = {task.remote(call, order, False, bases[folder]): order for order, folder in folders.items()}
    failed, waiting = {}, list(places)
    while waiting:
        (one,), waiting = ray.wait(waiting, num_returns=1)
        order = places[one]
        cell, total = run.cells[order], len(run.cells)
        try:
            error = ray.get(one)
        except ray.exceptions.RayError as problem:
            error = f"{cell.name}: its worker failed ({str(problem).strip().splitlines()[-1]})"
            body = {"cell": cell.name, "method": cell.method, "error": error, "kind": type(problem).__name__}
            records.write_json(run.folder(cell) / FAILED, body)
        if error:
            failed[order] = error
        say(f"{cell.name} failed: {error}" if error else cell.name, total - len(waiting), total, "failed" if error else "cell")
    return dict(sorted(failed.items()))


def _task(
    call: tuple[Callable[..., ExperimentRun], str, str, str, bool, list[str], int], order: int, base: bool, _after: Any = None
) -> str:
    """In a worker: score the start model, or do a cell. What went wrong, or ""."""
    load, folder, file, out, trust, command, cores = call
    import torch

    from cltk.run.speed import tune_allocator

    os.chdir(folder)
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.argv = command  # records say what was typed
    torch.set_num_threads(cores)
    run = load(file, out, trust)
    tune_allocator(run.plan.experiment.speed.allocator)
    if base:
        with suppress(Exception):  # the cells meet it too, and keep it
            run.work().base(run.cells[order])
        return ""
    return Queue(run, [order], lambda *_: None).work().get(order, "")
