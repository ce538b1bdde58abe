"""Which records belong together: those of a method that differ in nothing but the seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cltk.report.sources import Entry, Record
from cltk.run.records import digest_of
from cltk.run.sameness import choices, flat

OTHERWISE = ("autocast", "grouping")  # choices of `cltk.run.speed` that change numbers, or the order of rows
MEASURED = ("data", "stages", "evals")  # what a method reads for itself is its own
FILE, UNSET = "file ", "=unset"
MOST_APART = 3  # differences in a name, of records that have no other
PLAIN = "plain"  # the family of fine-tuning without a method, at any learning rate


@dataclass(frozen=True)
class Group:
    """Records of one method with one setting of everything else, one a seed, ascending."""

    label: str
    family: str  # the methods in use, whatever their settings
    plain: bool
    context: str  # digest of all but method and seed
    start: str  # the start model
    entries: list[Entry]
    notes: list[str]


def group_entries(entries: Iterable[Entry]) -> list[Group]:
    """Records that differ in nothing but the seed, in the order of their first; of a repeated seed the last counts."""
    together: defaultdict[str, list[Entry]] = defaultdict(list)
    contexts: dict[str, str] = {}
    for entry in entries:
        context = _context(entry.record)
        key = digest_of([context, _mitigators(entry.record), _files(entry.record)])
        together[key].append(entry)
        contexts[key] = context
    groups = []
    labels = _labels([found[0].record for found in together.values()])
    for label, (key, found) in zip(labels, together.items(), strict=True):
        first, by_seed = found[0].record, {entry.record.get("seed", 0): entry for entry in found}
        repeated = len(found) - len(by_seed)
        notes = [f"a seed has several records, of which the last counts ({repeated} left out)"] if repeated else []
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        groups.append(Group(label, _family(first), _is_plain(first), contexts[key], _start(first), ordered, notes))
    return groups


def _labels(records: Sequence[Record]) -> list[str]:
    """A name for each: the method, then what differs between them, then a number where that is not enough.

    Records of one name, as an edited YAML leaves them, are told apart by what they were run with.
    """
    features = [_features(record) for record in records]
    keys = dict.fromkeys(key for one in features for key in one)
    varying = [key for key in keys if len({one.get(key) for one in features}) > 1]
    names = [
        [str(record["method"]), *(_part(key, one[key]) for key in varying if key in one)]
        for record, one in zip(records, features, strict=True)
    ]
    alike: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        alike[tuple(name)].append(i)
    for together in alike.values():
        if len(together) > 1:
            for i, apart in zip(together, _apart([_run_with(records[i]) for i in together]), strict=True):
                names[i] += apart[:MOST_APART]
    used: Counter[str] = Counter()
    labels = []
    for label in map(" ".join, names):
        used[label] += 1
        labels.append(label if used[label] == 1 else f"{label} #{used[label]}")
    return labels


def _apart(runs: Sequence[dict[str, str]]) -> list[list[str]]:
    """Of each run what it was set to that not all of them were: settings, and files by the start of their sha256."""
    keys = dict.fromkeys(key for one in runs for key in one)
    varying = {key for key in keys if any(one.get(key) != runs[0].get(key) for one in runs)}
    return [[_part(key, value) for key, value in one.items() if key in varying] for one in runs]


def differing(record: Record, others: Sequence[Record]) -> list[str]:
    """What this record was run with that not all of `others` were: settings, and files by the start of their sha256."""
    own, rest = _run_with(record), [_run_with(other) for other in others]
    keys = dict.fromkeys(key for one in [own, *rest] for key in one)
    return [_part(key, own.get(key, "unset")) for key in keys if any(one.get(key) != own.get(key) for one in rest)]


def _part(key: str, value: str) -> str:
    """key=value, of a setting by its last word, of a file by its name."""
    return f"{key.removeprefix(FILE) if key.startswith(FILE) else key.split('.')[-1]}={value}"


def _run_with(record: Record) -> dict[str, str]:
    apart = ("seed", "keep_model", "base", "grid", "speed")
    config = {key: value for key, value in record.get("config", {}).items() if key not in apart}
    said = {name: str(value) for name, value in flat("", _said(config)) if not name.endswith(".output_dir")}
    return said | {FILE + name: digest[:6] for name, digest in _files(record).items()}


def _files(record: Record, parts: Sequence[str] = (*MEASURED, "mitigators")) -> dict[str, str]:
    """The digests of the files that these parts of the configuration name; the start model has a digest of its own.

    Records of an older cltk list files too that only other cells read.
    """
    config = record.get("config", {})
    listed = record.get("digests", {}).get("files", {})
    named = _leaves(config.get(key) for key in parts) if listed else set()
    return {name: str(digest) for name, digest in listed.items() if name in named or name.split(":")[0] in named}


def _leaves(values: Iterable[Any]) -> set[str]:
    """Everything in nested mappings and lists, as text; a loop, which ten thousand records feel."""
    found, left = set(), list(values)
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        else:
            found.add(str(one))
    return found


def _context(record: Record) -> str:
    """Everything that was set, but for the method and the seed; of `speed` what it came to, where that trains otherwise."""
    apart = ("seed", "keep_model", "mitigators", "speed")
    config = {key: value for key, value in record.get("config", {}).items() if key not in apart}
    config["train"] = {key: value for key, value in config.get("train", {}).items() if key != "output_dir"}
    came_to = {stage: [what for what in OTHERWISE if found.get(what)] for stage, found in choices(record).items()}
    config["speed"] = {stage: on for stage, on in came_to.items() if on}
    return digest_of([_said(config), _features(record), _start(record), _files(record, MEASURED)])


def _said(value: object) -> object:
    """Without what is None or empty: records of an older cltk lack the keys that a later one leaves unset."""
    if not isinstance(value, dict):
        return value
    inner = {key: _said(one) for key, one in value.items()}
    return {key: one for key, one in inner.items() if one not in (None, [], {})}


def _mitigators(record: Record) -> tuple[str, object]:
    return record["method"], record.get("config", {}).get("mitigators")


def _start(record: Record) -> str:
    return str(record.get("digests", {}).get("start_model"))


def _features(record: Record) -> dict[str, str]:
    own = {key: value for key, value in record.get("labels", {}).items() if key not in ("mitigators", "seed")}
    model = record.get("config", {}).get("model", {}).get("pretrained")
    named = {"experiment": record.get("experiment"), "model": model, "cltk": record.get("environment", {}).get("cltk")}
    return {key: str(value) for key, value in {**named, **own}.items() if value is not None}


def _is_plain(record: Record) -> bool:
    config = record.get("config", {})
    return not config["mitigators"] if "mitigators" in config else record["method"] == "plain"


def references(groups: Sequence[Group]) -> list[int | None]:
    """For each group the number of the plain training that it is held against, None for plain training itself.

    Plain training with all else equal; where there is none, the only plain training of the same start model.
    """
    same, near = dict[str, int](), defaultdict[str, list[int]](list)
    for i, group in enumerate(groups):
        if group.plain:
            same.setdefault(group.context, i)
            near[group.start].append(i)
    alone = {start: found[0] for start, found in near.items() if len(found) == 1}
    return [None if group.plain else same.get(group.context, alone.get(group.start)) for group in groups]


def learning_rate(record: Record) -> float | None:
    """The rate that the run trained at, which low_lr scales."""
    low = record["train"].get("notes", {}).get("low_lr", {})
    return low.get("learning_rate", record.get("config", {}).get("train", {}).get("learning_rate"))


def _family(record: Record) -> str:
    """The methods in use, whatever their settings. A low learning rate alone is plain fine-tuning at another rate."""
    entries = record.get("config", {}).get("mitigators")
    if entries is None:
        return str(record["method"])
    names = [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)]
    return PLAIN if names in ([], ["low_lr"]) else " + ".join(names)
