"""Tables of what is no forgetting of one training: a stream's ACC, BWT, FWT and its matrix, and what each method cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cltk.measure.stats import Estimate
from cltk.measure.stream import NAMES
from cltk.report import noise
from cltk.report.aggregate import Summary
from cltk.report.tables import Table


def streams(summaries: Sequence[Summary]) -> Table | None:
    """ACC, BWT, FWT and forgetting of every method, over its seeds; None when nothing was a stream."""
    all_of_them = [one for one in summaries if "stream" in one.entries[0].record]
    gone = {one.label: names for one in all_of_them for e in one.entries if (names := e.record["stream"].get("missing"))}
    chosen = [one for one in all_of_them if one.label not in gone]
    if not chosen:
        return None
    found = chosen[0].entries[0].record["stream"]
    names = [name for name in NAMES if name in found]
    rows = [[one.label, str(len(one.entries)), *(_cell(measure(one, name)) for name in names)] for one in chosen]
    tasks = ", ".join(f"{task} ({found['matrix'][task]['metric']})" for task in found["tasks"])
    note = (
        f"over {tasks}, in this order; scores where less is better (NLL) count negatively, so more is better but for"
        " forgetting; 95 % intervals over documents, and over seeds where there are several"
    ) + "".join(f"; {label} is not here: {', '.join(names)} gave no number a document" for label, names in gone.items())
    return Table("Streams", ["method", "seeds", *names], rows, note)


def all_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The streams, then a matrix a method; empty when nothing was a stream."""
    found = streams(summaries)
    return [] if found is None else [found, *matrices(summaries)]


def measure(summary: Summary, name: str) -> Estimate:
    """One of `NAMES` over the seeds of a method, with an interval for new documents and, with several seeds, new trainings."""
    found = [entry.record["stream"][name] for entry in summary.entries]
    if len(found) == 1:
        one = found[0]
        return Estimate(one["value"], one["se"], one["ci"][0], one["ci"][1], math.nan, one["n"], one["clusters"])
    values, errors = ([one[key] for one in found] for key in ("value", "se"))
    return noise.combine([noise.from_records(values, errors, found[0]["clusters"], found[0]["n"])])


def _cell(estimate: Estimate) -> str:
    return f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def matrices(summaries: Sequence[Summary]) -> list[Table]:
    """R[t][i] of every task after every training, mean over seeds: a table a method."""
    done = []
    for one in summaries:
        found = [entry.record["stream"] for entry in one.entries if "stream" in entry.record]
        if not found:
            continue
        stages = found[0]["stages"]
        rows = []
        for task, row in ((task, row) for task, row in found[0]["matrix"].items() if all(task in s["matrix"] for s in found)):
            r = np.mean([stream["matrix"][task]["performance"] for stream in found], axis=0)
            rows.append([f"{task} ({row['metric']})", *(f"{value:.3f}" for value in r)])
        done.append(Table(f"{one.label}: after each training", ["task", "start model", *stages], rows))
    return done


def costs(summaries: Sequence[Summary]) -> Table | None:
    """Trained parameters, peak memory and time of every method; None for records that do not hold them."""
    chosen = [one for one in summaries if "parameters" in one.entries[0].record["train"]]
    if not chosen:
        return None
    rows = []
    for one in chosen:
        trains = [entry.record["train"] for entry in one.entries]
        seconds, tokens = (sum(train[key] for train in trains) / len(trains) for key in ("seconds", "tokens"))
        rows.append([
            one.label, f"{trains[0]['parameters'] / 1e6:.2f}", f"{max(train['peak_bytes'] for train in trains) / 1e9:.2f}",
            f"{seconds:.0f}", f"{tokens / seconds:.0f}" if seconds else "",
        ])  # fmt: skip
    note = "peak: of the GPU in training; without one, of the process so far, so that only a cell that ran alone shows its own"
    return Table("Costs", ["method", "M trained", "peak GB", "s of training", "tokens/s"], rows, note)
