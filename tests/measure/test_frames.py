"""A comparison in a notebook."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from cltk.errors import InputError
from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores


@pytest.fixture(scope="module")
def result():
    """5,000 documents of a task whose name is markup, and a text of one cluster."""
    rng, n = np.random.default_rng(0), 5000
    hashes = [f"h{i}" for i in range(n)]
    sides = []
    for _ in range(2):
        quiz = TaskScores("<b>quiz", {"acc": rng.integers(0, 2, n).astype(float).tolist()}, {"acc": True}, hashes, hashes)
        text = TaskScores(
            "text", {"nll": rng.normal(2, 1, 40).tolist()}, {"nll": False}, hashes[:40], hashes[:40], cluster=["a"] * 40
        )
        sides.append(Scores("digest", {"<b>quiz": quiz, "text": text}))
    return compare(*sides, draws=100)


def test_a_bare_result_is_one_line(result):
    """A notebook that shows a result must not print its documents (braintrust-sdk-javascript#233)."""
    shown = repr(result)
    assert len(shown) < 200
    assert "\n" not in shown
    assert f"{100 * result.macro.forgetting:+.1f}" in shown
    assert len(repr([result] * 3)) < 700
    assert all("Estimate" not in repr(row) for row in result.rows)


def test_html_is_a_table_whose_names_are_text(result):
    root = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    rows = root.findall(".//tbody/tr")
    cells = [[cell.text or "" for cell in row] for row in rows]
    assert len(rows) == len(result.rows) + 1
    quiz, text = result.rows
    assert cells[0][0] == "<b>quiz"
    assert cells[0][3:6] == [f"{100 * quiz.pre:.1f}", f"{100 * quiz.post:.1f}", f"{100 * quiz.forgetting:+.1f}"]
    assert cells[1][3:7] == [f"{text.pre:.3f}", f"{text.post:.3f}", f"{text.forgetting:+.3f}", "no interval"]
    assert cells[2][0] == "macro"
    assert len(result._repr_html_()) < 5000


def test_frame_has_the_rows_and_the_macro(result):
    frame = result.to_frame()
    assert frame["task"].tolist() == ["<b>quiz", "text", "macro"]
    for one, row in zip(frame.to_dict("records"), [*result.rows, result.macro], strict=True):
        assert (one["forgetting"], one["pre"], one["p"], (one["ci_low"], one["ci_high"])) == (
            row.forgetting,
            row.pre,
            row.p,
            row.ci,
        )
    assert frame["lost"][0] == result.rows[0].lost
    assert frame["lost"].isna().tolist() == [False, True, False]


def test_documents_of_a_task_have_the_mean_of_its_row(result):
    found = result.documents("text")
    assert list(found.columns) == ["doc_hash", "prompt_hash", "cluster", "nll_pre", "nll_post", "nll_d"]
    assert len(found) == 40
    assert found["nll_d"].mean() == pytest.approx(result.rows[1].forgetting)
    with pytest.raises(InputError, match="no task 'quiz' was compared; there are <b>quiz, text"):
        result.documents("quiz")
