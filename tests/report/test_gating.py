"""A line, a summary and a JUnit file: what they say is what the gate found, in forms that their readers accept."""

from __future__ import annotations

import re

import pytest
from lxml import etree

from cltk.measure.forgetting import compare
from cltk.measure.gate import gate
from cltk.measure.scores import Scores, TaskScores
from cltk.report.gating import junit, line, markdown


def result(*tasks):
    """(name, documents, lost, gained) of tasks of which half was right before."""
    sides = []
    for after in (False, True):
        found = {}
        for name, n, lost, gained in tasks:
            right = n // 2
            values = [0.0] * lost + [1.0] * (right - lost) + [1.0] * gained + [0.0] * (n - right - gained)
            before = [1.0] * right + [0.0] * (n - right)
            hashes = [f"{name}{i}" for i in range(n)]
            found[name] = TaskScores(name, {"acc": values if after else before}, {"acc": True}, hashes, hashes)
        sides.append(Scores("digest", found))
    return compare(*sides, draws=100)


ODD = "bad\x12 <task> & \ud800|pipe"
FOUND = gate(
    {"one": result(("arc", 1000, 3, 3), ("gsm8k", 1000, 90, 10), (ODD, 100, 4, 2)), "two": result(("arc", 1000, 0, 1))},
    {"acc": 0.02},
)


def test_one_line_a_model_says_the_worst_first():
    assert line(FOUND, "one").startswith("one: over budget: gsm8k acc +8.0 pp (95 % interval +6.")
    assert "of 2 pp, 1000 documents" in line(FOUND, "one")
    assert line(FOUND, "two").startswith("two: within budget in 1 check; nearest: arc acc -0.1 pp")
    unknown = gate({"m": result(("arc", 100, 4, 2), ("piqa", 90, 4, 2))}, {"acc": 0.02})
    said = line(unknown, "m")
    assert "\n" not in said
    assert re.fullmatch(r"m: cannot tell: \w+ acc .* documents; about [\d ]+ documents would decide; 1 more of 2 checks", said)


def test_markdown_has_a_row_a_check_and_the_answer_above():
    text = markdown(FOUND)
    assert text.startswith("### Forgetting: over budget\n")
    assert "**one: over budget**" in text
    assert "**two: within budget**" in text
    rows = [row for row in text.splitlines() if row.startswith("| ") and " acc " in row]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}
    assert "<task>" not in text
    assert [row.split("|")[1].strip() for row in rows[:1]] == ["gsm8k"]


@pytest.mark.parametrize(("on_unknown", "failures", "skipped"), [("fail", 2, 0), ("pass", 1, 1)])
def test_junit_is_xml_that_strict_parsers_take(on_unknown, failures, skipped):
    """Control characters in names and messages made whole reports unreadable (schemathesis#4794, SUREFIRE-57)."""
    root = etree.fromstring(junit(FOUND, on_unknown).encode("utf-8"))
    assert [(suite.get("name"), suite.get("tests")) for suite in root] == [("one", "3"), ("two", "1")]
    assert (root.get("failures"), root.get("skipped")) == (str(failures), str(skipped))
    assert len(root.findall(".//failure")) == failures
    assert len(root.findall(".//skipped")) == skipped
    over = root.find(".//testcase[@name='gsm8k acc']/failure")
    assert over.get("type") == "over budget"
    assert "+8.0 pp" in over.get("message")
    assert root.find(".//testcase[@name='arc acc']/failure") is None
    assert "bad\ufffd <task> & \ufffd|pipe acc" in [case.get("name") for case in root.iter("testcase")]


def test_what_could_not_be_compared_is_named():
    sides = [
        Scores(
            "d",
            {
                n: TaskScores(n, {"acc": [v] * 1000}, {"acc": True}, [str(i) for i in range(1000)], [""] * 1000)
                for n, v in given
            },
        )
        for given in ([("arc", 1.0), ("piqa", 1.0)], [("arc", 1.0), ("piqa", float("nan"))])
    ]
    found = gate({"m": compare(*sides, draws=100)}, {"acc": 0.02})
    assert re.search(r"m: cannot tell: piqa could not be compared: .*nan", line(found, "m"))
    assert "cannot tell: task piqa" in markdown(found)
    assert "could not be compared" in etree.fromstring(junit(found).encode()).find(".//failure").get("message")
