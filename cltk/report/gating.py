"""What a gate says: a line, Markdown for a job's summary, JUnit XML for whatever shows tests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from cltk.measure.gate import Check, Gate
from cltk.report.effects import is_accuracy, unit
from cltk.report.tables import Table, number, p_value

WORDS = {"within": "within budget", "over": "over budget", "unknown": "cannot tell"}
NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 has no way to write


def line(gate: Gate, model: str) -> str:
    """One line a model: its answer, and the check that it rests on first."""
    answer, checks = gate.answer(model), gate.models[model]
    same = sorted((check for check in checks if check.answer == answer), key=_worst)
    more = f"; {len(same) - 1} more of {len(checks)} checks" if len(same) > 1 else ""
    if answer == "within":
        return f"{model}: {WORDS[answer]} in {len(checks)} check{'s' if len(checks) > 1 else ''}; nearest: {sentence(same[0])}"
    return f"{model}: {WORDS[answer]}: {sentence(same[0])}{more}"


def sentence(check: Check) -> str:
    """What was lost of which budget, and what would decide."""
    name = f"{check.task} {check.metric}".strip()
    if check.row is None:
        return f"{name} could not be compared: {check.why}"
    row, metric = check.row, check.metric
    low, high = (number(end, metric, "+") for end in row.ci)
    span = f" (95 % interval {low} to {high})" if math.isfinite(row.ci[0] + row.ci[1]) else ""
    said = f"{name} {number(row.forgetting, metric, '+')} {unit(metric)}".rstrip()
    said += f"{span} of {_budget(check)}, {row.n} documents"
    if check.noise:
        said += f", equal runs differ by {number(check.noise, metric)} beside them"
    return said + (f"; {_needed(check)}" if check.answer == "unknown" else "")


def markdown(gate: Gate) -> str:
    """A heading with the answer, a table a model, and the notes of its comparison."""
    parts = [f"### Forgetting: {WORDS[gate.answer()]}\n"]
    for model, checks in gate.models.items():
        rows = [_row(check) for check in sorted(checks, key=_worst)]
        heads = ["task", "metric", "n", "before", "after", "forgetting", "95 % interval", "budget", "p", "verdict"]
        note = (
            'positive is bad; p: of "forgets the budget or more" where less was lost, else of "forgets the budget or less";'
            " adjusted for the number of models and checks"
        )
        parts.append(Table(f"{model}: {WORDS[gate.answer(model)]}", heads, rows, note).markdown())
        parts += [f"- {' '.join(text.split())}\n" for text in gate.notes[model][:20]]
    return "\n".join(parts)


def junit(gate: Gate, on_unknown: str = "fail") -> str:
    """A test suite a model, a test a check: over is a failure, cannot tell one too, or skipped with on_unknown "pass"."""
    top = ElementTree.Element("testsuites", name="cltk gate")
    for model, checks in gate.models.items():
        suite = ElementTree.SubElement(top, "testsuite", {"name": _xml(model), "time": "0", **_counts(checks, on_unknown)})
        for check in checks:
            names = {"classname": _xml(f"{model}.{check.task}"), "name": _xml(f"{check.task} {check.metric}".strip())}
            test = ElementTree.SubElement(suite, "testcase", {**names, "time": "0"})
            said = _xml(sentence(check))
            if kind := _kind(check, on_unknown):
                ElementTree.SubElement(test, kind, message=said, type=WORDS[check.answer])
            ElementTree.SubElement(test, "system-out").text = said
    for key in ("tests", "failures", "skipped"):
        top.set(key, str(sum(int(suite.get(key, "0")) for suite in top)))
    ElementTree.indent(top)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(top, encoding="unicode")}\n'


def _kind(check: Check, on_unknown: str) -> str:
    if check.answer == "within":
        return ""
    return "skipped" if check.answer == "unknown" and on_unknown == "pass" else "failure"


def _counts(checks: Sequence[Check], on_unknown: str) -> dict[str, str]:
    kinds = [_kind(check, on_unknown) for check in checks]
    return {
        "errors": "0",
        "tests": str(len(checks)),
        "failures": str(kinds.count("failure")),
        "skipped": str(kinds.count("skipped")),
    }


def _xml(text: str) -> str:
    return NO_XML.sub("\ufffd", text)


def _worst(check: Check) -> tuple[int, float]:
    """Over first, then cannot tell; of each the one that most probably is over."""
    rank = ["over", "unknown", "within"].index(check.answer)
    return rank, check.p_over if check.answer == "over" else -check.p_within


def _budget(check: Check) -> str:
    return f"{100 * check.budget:g} pp" if is_accuracy(check.metric) else f"{check.budget:g} {unit(check.metric)}".rstrip()


def _needed(check: Check) -> str:
    if check.needed is None:
        return "no number of documents would decide"
    return f"about {check.needed:,} documents would decide".replace(",", " ")


def _row(check: Check) -> list[str]:
    words = WORDS[check.answer]
    if check.row is None:
        return [check.task, check.metric, "", "", "", "", "", _budget(check), "", f"{words}: {check.why}"]
    row, metric = check.row, check.metric
    pre, post = number(row.pre, metric), number(row.post, metric)
    low, high = (number(end, metric, "+") if math.isfinite(end) else "" for end in row.ci)
    p = p_value(check.p_within if row.forgetting < check.budget else check.p_over)
    words += f": {_needed(check)}" if check.answer == "unknown" else ""
    lost = f"{number(row.forgetting, metric, '+')} {unit(metric)}".rstrip()
    return [check.task, metric, str(row.n), pre, post, lost, f"{low} to {high}", _budget(check), p, words]
