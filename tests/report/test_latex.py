"""LaTeX: what is bold and what has a dagger against tests made here; escapes; figures; the same every time."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as ref
from study_cases import LABELS, N, base_scores, record, task, tuned_scores, write_study

from cltk.measure.scores import Scores
from cltk.report import latex
from cltk.report.aggregate import summarize
from cltk.report.effects import Effect
from cltk.report.pairs import Mark, Study, endpoints
from cltk.report.sides import difference
from cltk.report.sources import Entry, read_entries
from cltk.run.records import write_json


def constructed(folder: Path, rises: dict[str, float]) -> Study:
    """One seed; every document's NLL on brown rises by so much, give or take noise of its own; nothing else moves."""
    base = base_scores()
    write_json(folder / "base-0" / "scores.json", base.to_json())
    for i, (method, rise) in enumerate(rises.items()):
        noise = np.random.default_rng(i).normal(0, 0.05, N)
        tasks = dict(base.tasks)
        tasks["brown"] = task("brown", "nll", np.asarray(base.tasks["brown"].values["nll"]) + rise + noise)
        post = Scores(method, tasks)
        write_json(folder / method / "record.json", record(method, 0, i, post, base))
        write_json(folder / method / "scores.json", post.to_json())
    return Study(summarize(read_entries(folder)))


def marks(study: Study, start: str) -> dict[str, Mark]:
    endpoint = next(one for one in endpoints(study.summaries) if one.name.startswith(start))
    return {summary.label: mark for summary, mark in zip(study.summaries, study.marks(endpoint), strict=True)}


def test_bold_and_daggers_are_what_paired_tests_say(tmp_path):
    study = constructed(tmp_path, {"plain": 0.3, "same": 0.3, "good": 0.1, "tied": 0.103, "worse": 0.5})
    assert marks(study, "brown") == {
        "plain": Mark(False, False), "same": Mark(False, False), "good": Mark(True, True), "tied": Mark(True, True),
        "worse": Mark(True, False),
    }  # fmt: skip
    table = latex.main_table(study)
    rows = {line.split(" & ")[0]: line.split(" & ")[2] for line in table.splitlines() if line.count(" & ") == 3}
    assert {name: (r"\mathbf" in cell, r"\dagger" in cell) for name, cell in rows.items() if name != "method"} == {
        "plain": (False, False), "same": (False, False), "good": (True, True), "tied": (True, True), "worse": (False, True),
    }  # fmt: skip
    assert "Holm" in table.split(r"\label")[0]


def test_nothing_moved_is_a_tie_of_all(tmp_path):
    study = constructed(tmp_path, {"plain": 0.3, "ewc": 0.1})
    assert set(marks(study, "accuracy").values()) == {Mark(False, True)}
    assert set(marks(study, "new-task").values()) == {Mark(False, True)}


def test_daggers_are_adjusted_over_methods(tmp_path):
    """Eight methods that differ from plain by a little: what is below 0.05 alone is not, times eight."""
    study = constructed(tmp_path, {"plain": 0.3} | {f"m{i}": 0.3 - 0.004 * i for i in range(8)})
    endpoint = next(one for one in endpoints(study.summaries) if one.name.startswith("brown"))
    p = [difference(study.side(i), study.side(0), ["brown"], "retain").estimate.p for i in range(1, 9)]
    ordered = np.sort(p)
    steps = np.minimum(np.maximum.accumulate(ordered * np.arange(8, 0, -1)), 1)
    adjusted = steps[np.argsort(np.argsort(p))]
    found = [mark.differs for mark in study.marks(endpoint)[1:]]
    assert found == [bool(one < 0.05) for one in adjusted]
    assert sum(found) < sum(one < 0.05 for one in p)


def test_the_test_behind_a_mark_is_paired_by_cluster(tmp_path):
    study = constructed(tmp_path, {"plain": 0.3, "ewc": 0.29})
    d = np.random.default_rng(1).normal(0, 0.05, N) - np.random.default_rng(0).normal(0, 0.05, N) - 0.01
    sums = d.reshape(-1, 2).sum(axis=1)  # LABELS pairs neighbours
    assert len(set(LABELS)) == len(sums)
    one = difference(study.side(1), study.side(0), ["brown"], "retain").estimate
    assert one.mean == pytest.approx(d.mean())
    assert one.p == pytest.approx(ref.ttest_1samp(sums, 0).pvalue, abs=0.05)


def test_without_scores_nothing_is_marked(tmp_path):
    study = Study(summarize(read_entries(write_study(tmp_path / "out", scores=False))))
    for endpoint in endpoints(study.summaries):
        assert study.marks(endpoint) == [Mark(False, False)] * 3
    table = latex.main_table(study)
    assert r"\mathbf" not in table
    assert "dagger" not in table
    assert "Bold" not in table


def test_numbers_and_caption(tmp_path):
    study = Study(summarize(read_entries(write_study(tmp_path / "out"))))
    table = latex.main_table(study)
    ewc = next(line for line in table.splitlines() if line.startswith("ewc"))
    effect = study.summaries[1].primary
    low, high = effect.estimate.ci
    assert rf"{effect.estimate.mean:+.3f}}}$" in ewc
    assert f"$[{low:+.3f}, {high:+.3f}]$" in ewc
    assert "of tiny, 3 seeds." in table
    assert "brown 60" in table
    assert "over seeds and documents" in table
    assert latex.tasks_table(study.summaries).count(r" \\") == 2 + 3 * 4  # heads of the first page and of the others


def balanced(text: str) -> bool:
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    return depth == 0


BAD = "a_b%c#d&e$f{g}h~i^j\\k<l>m|n\"o`p'q--r[s] λ\n\x00"


def test_every_special_character_is_escaped():
    shown = latex.escape(BAD)
    assert balanced(shown)
    assert "\n" not in shown
    assert "\x00" not in shown
    assert re.findall(r"(?<!\\)[&#%_~^]", shown) == []
    assert latex.escape("[x]").startswith("{")  # after \\ a bracket would be an option
    assert latex.escape("a--b") == "a{-}{-}b"


def bad_study() -> Study:
    base = base_scores()
    one = record("ewc", 0, 1, tuned_scores("ewc", 0, base), base)
    one["method"] = BAD
    one["config"]["model"]["pretrained"] = BAD
    for result in (one["retain"], one["learn"]):
        for row in result["rows"]:
            row["task"] = BAD + row["task"]
        result["headline"] = {BAD + name: metric for name, metric in result["headline"].items()}
    return Study(summarize([Entry(one)]))


def test_names_cannot_break_a_table():
    study = bad_study()
    for text in (latex.main_table(study), latex.tasks_table(study.summaries)):
        assert balanced(text)
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1


def test_no_interval_and_no_value():
    row = base_row() | {"se": None, "ci": [None, None]}
    assert latex.value(Effect.of(row, "x")) == "$+0.100$"
    assert latex.value(None) == "--"


def base_row() -> dict:
    base = base_scores()
    rows = record("ewc", 0, 0, tuned_scores("ewc", 0, base), base)["retain"]["rows"]
    return next(row for row in rows if row["metric"] == "nll") | {"forgetting": 0.1}


def test_files_are_written_and_the_same_every_time(tmp_path):
    study = Study(summarize(read_entries(write_study(tmp_path / "out", seeds=1))))
    for name in ("a", "b"):
        latex.write(study, tmp_path / name)
    found = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert set(found) == {"main.tex", "area.tex", "tasks.tex", "report.tex", "plane.pdf", "forgetting.pdf", "bars.pdf"}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert all(data.startswith(b"%PDF") for name, data in found.items() if name.endswith(".pdf"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a LaTeX")
@pytest.mark.parametrize("bad", [False, True])
def test_a_latex_compiles_it(tmp_path, bad):
    study = bad_study() if bad else Study(summarize(read_entries(write_study(tmp_path / "out", seeds=2))))
    latex.write(study, tmp_path / "tex")
    run = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    for _ in range(2):  # labels come with the second
        done = subprocess.run(run, cwd=tmp_path / "tex", capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    assert b"multiply" not in done.stdout
    assert (tmp_path / "tex/report.pdf").exists()
