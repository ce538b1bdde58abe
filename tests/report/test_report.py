"""Reports on hand-made folders: numbers against brute force and statsmodels, and every way that scores can be missing."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as ref
from statsmodels.stats.multitest import multipletests
from study_cases import LABELS, N, base_scores, record, task, tuned_scores, write_study

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure import stats
from cltk.measure.scores import Scores
from cltk.report import api, latex, page, tables
from cltk.report.aggregate import summarize
from cltk.report.measurement import measured
from cltk.report.pairs import Study
from cltk.report.plane import area_table
from cltk.report.sources import Entry, ScoreFiles, read_entries
from cltk.run.records import read_json, write_json


def losses(method, task, n_seeds=3):
    """d [seeds, n], made without the package's reader."""
    base = base_scores()
    ((metric, before),) = base.tasks[task].values.items()
    after = [tuned_scores(method, seed, base).tasks[task].values[metric] for seed in range(n_seeds)]
    return (np.asarray(after) - before) * (1 if metric == "nll" else -1)


def cells(table, label):
    return next(dict(zip(table.heads, row, strict=True)) for row in table.rows if row[0] == label)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def summaries(folder):
    return summarize(read_entries(folder))


def test_a_method_is_one_line_and_every_seed_is_kept(summaries):
    assert [(summary.label, summary.seeds) for summary in summaries] == [(m, [0, 1, 2]) for m in ("plain", "ewc", "replay")]
    for summary in summaries:
        for effect in [*summary.retain, *summary.learn]:
            d = losses(summary.label, effect.task)
            assert effect.points == pytest.approx(d.mean(axis=1))
            assert effect.estimate.mean == pytest.approx(d.mean())
            assert effect.n == N
    by_seed = tables.seeds(summaries)
    assert [row[:2] for row in by_seed.rows] == [[m, str(s)] for m in ("plain", "ewc", "replay") for s in range(3)]
    assert by_seed.rows[4][3] == f"{losses('ewc', 'brown')[1].mean():+.3f}"


def test_interval_covers_seeds_and_clustered_documents(summaries):
    """The mean squares of a two-way table of seeds and clusters of two documents."""
    brown = next(effect for effect in summaries[0].retain if effect.task == "brown")
    assert brown.estimate.se == pytest.approx(two_way_error(losses("plain", "brown")))
    assert len(set(LABELS)) == N // 2


def two_way_error(d):
    """Of the mean of d [S, n], consecutive pairs of documents a cluster: (rows + columns - rest) of the mean squares."""
    table = d.reshape(len(d), -1, 2).mean(axis=2)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    a, b = table.shape
    training, documents = rows.var(ddof=1) / a, columns.var(ddof=1) / b
    both = (rest**2).sum() / ((a - 1) * (b - 1)) / (a * b)
    return np.sqrt(max(training + documents - both, training, documents))


def test_accuracy_lost_is_the_mean_over_tasks_with_the_same_seeds_in_each(summaries):
    d = [losses("plain", task) for task in ("arc", "piqa")]
    assert summaries[0].macro.points == pytest.approx((d[0].mean(axis=1) + d[1].mean(axis=1)) / 2)
    assert summaries[0].macro.estimate.mean == pytest.approx(np.mean([one.mean() for one in d]))


def test_difference_to_plain_is_paired_over_seeds_and_documents(summaries):
    d = losses("ewc", "brown") - losses("plain", "brown")
    one = summaries[1].difference
    assert one.task == "brown"
    assert one.estimate.mean == pytest.approx(d.mean())
    assert one.points == pytest.approx(d.mean(axis=1))
    assert one.estimate.se == pytest.approx(two_way_error(d))
    separate = np.hypot(summaries[0].primary.estimate.se, summaries[1].primary.estimate.se)
    assert one.estimate.se < 0.6 * separate  # the seeds' common noise cancels
    assert (one.verdict, summaries[2].difference.verdict) == ("forgets less", "cannot tell at this n")
    assert (summaries[0].difference, summaries[0].plain) == (None, True)


def test_learning_is_compared_too(summaries):
    d = losses("ewc", "heldout") - losses("plain", "heldout")
    assert summaries[1].learning.estimate.mean == pytest.approx(d.mean())


def test_holm_over_methods_and_bh_over_methods_and_tasks(summaries):
    for name in ("primary", "difference"):
        found = [one for summary in summaries if (one := getattr(summary, name)) is not None]
        expected = multipletests([one.estimate.p for one in found], method="holm")[1]
        assert [one.adjusted for one in found] == pytest.approx(list(expected))
        expected = multipletests([one.p_margin for one in found], method="holm")[1]
        assert [one.adjusted_margin for one in found] == pytest.approx(list(expected))
    others = [one for summary in summaries for one in summary.retain if one.task != "brown"]
    assert len(others) == 6
    assert [one.adjusted for one in others] == pytest.approx(
        list(multipletests([one.estimate.p for one in others], method="fdr_bh")[1])
    )
    assert [one.adjusted_margin for one in others] == pytest.approx(
        list(multipletests([one.p_margin for one in others], method="fdr_bh")[1])
    )
    assert all(one.adjusted is None for summary in summaries for one in summary.learn)


@pytest.mark.parametrize(
    ("adjusted", "margin", "words", "rests"),
    [
        (0.01, 0.9, "forgets", 0.01),
        (0.01, 0.04, "forgets (by less than 0.05 nats)", 0.04),
        (0.9, 0.04, "does not forget by more than 0.05 nats", 0.04),
        (0.9, 0.06, "cannot tell at this n", 0.9),  # the margin's p alone is 0.001: the family's counts
    ],
)
def test_the_printed_p_is_the_one_that_the_verdict_rests_on(summaries, adjusted, margin, words, rests):
    estimate = stats.Estimate(0.02, 0.005, 0.01, 0.03, 0.001, 100, 100)
    effect = replace(
        summaries[0].primary, estimate=estimate, margin=0.05, p_margin=0.001, adjusted=adjusted, adjusted_margin=margin,
        more=False,
    )  # fmt: skip
    assert (effect.verdict, effect.rests_on) == (words, (0.001, rests))
    one = replace(summaries[0], primary=effect, retain=[], learn=[], difference=None)
    shown = "0.900, of 0.05 nats or more 0.060" if words.startswith("cannot") else f"{rests:.3f}"
    assert tables.verdict([one]) == [f"plain (3 seeds): {words} on {effect.task} (Holm p {shown})."]
    assert tables.details([one]).rows[0][6:8] == ["0.001", f"{rests:.3f}"]


def test_an_effect_over_a_family_is_the_one_that_replace_makes(summaries):
    effect = replace(summaries[0].primary, adjusted=0.001, adjusted_margin=0.9)
    words = effect.verdict  # kept from here on
    found, expected = effect.over_family(0.9, 0.8), replace(effect, adjusted=0.9, adjusted_margin=0.8)
    assert (found, found.verdict, found.rests_on) == (expected, expected.verdict, expected.rests_on)
    assert (effect.verdict, found.verdict != words) == (words, True)


def test_churn_stands_beside_lost_and_gained(summaries):
    base = base_scores()
    right = [tuned_scores("ewc", seed, base).tasks["piqa"].values["acc"] for seed in range(3)]
    pairs = [stats.churn(right[a], right[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    piqa = next(effect for effect in summaries[1].retain if effect.task == "piqa")
    assert piqa.churn == pytest.approx(np.mean([(pair.lost + pair.gained) / 2 for pair in pairs]))
    before = np.asarray(base.tasks["piqa"].values["acc"])
    assert piqa.lost == pytest.approx(np.mean([(before > one).sum() for one in right]))
    assert piqa.gained == pytest.approx(np.mean([(before < one).sum() for one in right]))
    assert "churn" in tables.details(summaries).heads


def test_verdicts_come_first_in_words(folder, tmp_path):
    text = cltk.report(folder, markdown=tmp_path / "report.md", show=False)
    assert (tmp_path / "report.md").read_text() == text
    first = text.splitlines()[1]
    assert first.startswith("- ewc (3 seeds): learns; forgets on brown (Holm p 0.0")
    assert "cannot tell at this n on arc, piqa; against plain: forgets less (Holm p" in first
    assert "Several seeds: for new seeds and new documents." in text
    assert "One seed" not in text


# ---- one seed, and scores that are missing


def test_one_seed_keeps_the_records_numbers(tmp_path):
    entries = read_entries(write_study(tmp_path / "out", seeds=1))
    plain = summarize(entries)[0]
    row = next(row for row in entries[0].record["retain"]["rows"] if row["task"] == "brown")
    assert (plain.primary.estimate.mean, *plain.primary.estimate.ci) == (row["forgetting"], *row["ci"])
    assert plain.macro.estimate.p == entries[0].record["retain"]["macro"]["p"]
    text = cltk.report(tmp_path / "out", show=False)
    assert "One seed: the interval covers documents, not training noise" in text
    assert "Seed by seed" not in text
    assert "churn" not in text


def test_one_seed_is_compared_with_plain_over_documents(tmp_path):
    one = summarize(read_entries(write_study(tmp_path / "out", seeds=1)))[1].difference
    d = (losses("ewc", "brown", 1) - losses("plain", "brown", 1))[0]
    closed = stats.paired_mean(d, LABELS)
    assert one.estimate.mean == pytest.approx(closed.mean)
    assert one.estimate.ci == pytest.approx(closed.ci, abs=0.004)


def test_flat_results_with_and_without_scores(tmp_path, summaries):
    with_scores = summarize(read_entries(write_study(tmp_path / "a", flat=True)))
    assert [one.primary for one in with_scores] == [one.primary for one in summaries]
    assert [one.difference for one in with_scores] == [one.difference for one in summaries]

    without = summarize(read_entries(write_study(tmp_path / "b", flat=True, scores=False)))
    rows = [losses("plain", "brown")[seed] for seed in range(3)]
    errors = [stats.paired_mean(row, LABELS).se for row in rows]
    points = np.asarray([row.mean() for row in rows])
    assert without[0].primary.estimate.mean == pytest.approx(points.mean())
    assert without[0].primary.estimate.se ** 2 == pytest.approx(points.var(ddof=1) / 3 + np.mean(np.square(errors)))
    assert all(one.difference is None and not one.per_document for one in without)
    text = cltk.report(tmp_path / "b", show=False)
    assert "eeds x documents needs the per-document scores" in text
    assert "ewc, replay: not compared with plain training: per-document scores are missing" in text
    assert "Against plain" not in text


def test_the_collector_rests_during_a_report_alone(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(api, "summarize", lambda entries: seen.append(gc.isenabled()) or summarize(entries))
    cltk.report(folder, show=False)
    assert gc.isenabled()
    with pytest.raises(InputError):
        cltk.report(folder / "nothing", show=False)
    assert gc.isenabled()
    gc.disable()
    try:
        cltk.report(folder, show=False)
        assert not gc.isenabled()  # as the caller had it
    finally:
        gc.enable()
    assert seen == [False, False]


def test_records_in_memory_have_no_scores_and_files_do(folder):
    paths = sorted(folder.glob("*/record.json"))
    assert "Against plain" in cltk.report(paths, show=False)
    assert "Against plain" not in cltk.report([read_json(path) for path in paths], show=False)


def test_one_missing_score_file_leaves_the_others(tmp_path):
    out = write_study(tmp_path / "out")
    (out / "replay-1" / "scores.json").unlink()
    plain, ewc, replay = summarize(read_entries(out))
    assert (plain.per_document, ewc.per_document, replay.per_document) == (True, True, False)
    assert ewc.difference is not None
    assert replay.difference is None


def test_scores_of_another_run_are_refused(tmp_path):
    out = write_study(tmp_path / "out")
    write_json(out / "ewc-1" / "scores.json", read_json(out / "ewc-2" / "scores.json"))
    with pytest.raises(InputError, match=r"ewc-1/scores.json: scores of other weights"):
        summarize(read_entries(out))


def test_a_base_measured_on_other_documents_is_not_used(tmp_path):
    out = write_study(tmp_path / "out")
    other = base_scores().to_json()
    other["tasks"]["brown"]["doc_hash"] = [f"x{i}" for i in range(N)]
    write_json(out / "base-00" / "scores.json", other)  # sorts after base-0, so put it alone
    assert summarize(read_entries(out))[0].per_document
    (out / "base-0" / "scores.json").unlink()
    assert not summarize(read_entries(out))[0].per_document


# ---- what belongs together


def test_each_record_goes_with_the_start_scores_of_its_own_machine(tmp_path):
    """The same start model, scored on two machines: the numbers differ in their last digits."""
    here, there = base_scores(), base_scores()
    there.tasks["brown"] = task("brown", "nll", np.asarray(here.tasks["brown"].values["nll"]) + 1e-4)
    for i, base in enumerate((here, there)):
        post = tuned_scores("ewc", i, base)
        write_json(tmp_path / f"base-{i}.scores.json", base.to_json())
        write_json(tmp_path / f"ewc-{i}.json", record("ewc", i, i, post, base))
        write_json(tmp_path / f"ewc-{i}.scores.json", post.to_json())
    files, entries = ScoreFiles(), read_entries(tmp_path)
    for one, base in zip(entries, (here, there), strict=True):
        assert list(files.losses(one)["brown"].before) == base.tasks["brown"].values["nll"]


def entry(method, seed, order=0, base=None, **labels):
    base = base or base_scores()
    return Entry(record(method, seed, order, tuned_scores(method, seed, base), base, **labels))


def test_grid_labels_keep_settings_apart():
    entries = [entry(m, s, **{"train.learning_rate": r}) for r in (1e-5, 1e-4) for s in (0, 1) for m in ("plain", "ewc")]
    found = summarize(entries)
    assert [(summary.label, summary.seeds) for summary in found] == [
        (f"{m} learning_rate={r}", [0, 1]) for r in ("1e-05", "0.0001") for m in ("plain", "ewc")
    ]


def test_plain_with_the_same_labels_is_the_reference(tmp_path):
    base = base_scores()
    out = tmp_path / "out"
    write_json(out / "base-0" / "scores.json", base.to_json())
    shift = {1e-5: 0.0, 1e-4: 1.0}
    for i, (rate, method) in enumerate((r, m) for r in (1e-5, 1e-4) for m in ("plain", "ewc")):
        post = tuned_scores(method, 0, base)
        moved = [value + shift[rate] for value in post.tasks["brown"].values["nll"]]
        post.tasks["brown"].values["nll"][:] = moved
        post = type(post)(f"{method}-{rate}", post.tasks)
        write_json(out / f"{i}" / "record.json", record(method, 0, i, post, base, **{"train.learning_rate": rate}))
        write_json(out / f"{i}" / "scores.json", post.to_json())
    expected = (losses("ewc", "brown", 1) - losses("plain", "brown", 1)).mean()
    found = [summary.difference for summary in summarize(read_entries(out)) if not summary.plain]
    assert [one.estimate.mean for one in found] == pytest.approx([expected, expected])


def test_edited_settings_are_not_pooled_and_repeated_seeds_are_said():
    changed = entry("ewc", 1)
    changed.record["config"]["train"] = {"max_steps": 9}
    found = summarize([entry("ewc", 0), changed])
    assert [summary.label for summary in found] == ["ewc", "ewc max_steps=9"]
    twice = summarize([entry("ewc", 0), entry("ewc", 0), entry("ewc", 1)])
    assert twice[0].seeds == [0, 1]
    assert "a seed has several records" in tables.overview(twice).note


def test_seeds_pool_over_what_speed_says_and_not_over_what_it_did():
    """`auto` where it came to float32 and `false` are one setting, whether or not the record has the keys of a later version;
    autocast is another."""

    def run(seed, said, on):
        one = entry("ewc", seed)
        one.record["config"]["speed"] = {"autocast": said}
        one.record["config"] |= {"data": {"train": {"text": None}}, "stages": []} if seed else {"data": {"train": {}}}
        one.record["train"]["notes"] = {"speed": [{"what": "autocast", "on": on, "why": "-"}]}
        return one

    runs = [run(0, "auto", False), run(1, False, False), run(2, "auto", True)]
    assert [len(one.entries) for one in summarize(runs)] == [2, 1]


def test_seeds_of_a_stream_pool_over_what_speed_did_in_each_stage():
    """Its notes are by stage, whatever a stage is called."""

    def run(seed, on):
        one = entry("ewc", seed)
        speed = {"speed": [{"what": "autocast", "on": on, "why": "-"}]}
        one.record["train"]["notes"] = {"speed": speed, "law": {"speed": [{"what": "autocast", "on": False, "why": "-"}]}}
        return one

    assert [len(one.entries) for one in summarize([run(0, False), run(1, False), run(2, True)])] == [2, 1]


def test_a_metric_of_the_whole_corpus_leaves_the_others_paired(tmp_path):
    """f1 stands for its task and is no document's: texts beside it are still compared with plain, over seeds and documents."""
    out, expected = tmp_path / "out", write_study(tmp_path / "plain")
    for i, file in enumerate(sorted(expected.glob("*/scores.json"))):
        data = read_json(file)
        task = data["tasks"].pop("arc")
        score = float(np.mean(task["values"].pop("acc_norm")))
        draws = [score, *(score + np.random.default_rng(i).normal(0, 0.02, 200)).tolist()]
        data["tasks"]["cola"] = task | {
            "task": "cola",
            "values": {},
            "corpus": {"f1": draws},
            "higher_is_better": {"f1": True},
            "choices": [],
        }
        write_json(out / file.parent.name / "scores.json", data)
    base = Scores.from_json(read_json(out / "base-0" / "scores.json"))
    for i, file in enumerate(sorted(expected.glob("*/record.json"))):
        old, post = read_json(file), Scores.from_json(read_json(out / file.parent.name / "scores.json"))
        write_json(out / file.parent.name / "record.json", record(old["method"], old["seed"], i, post, base))
    found = {one.label: one for one in summarize(read_entries(out))}
    assert found["plain"].on("cola") is not None
    for label, one in ((one.label, one) for one in summarize(read_entries(expected)) if not one.plain):
        assert found[label].difference.estimate == one.difference.estimate
        assert found[label].on("brown").estimate == one.on("brown").estimate


def test_plain_without_a_common_seed_is_not_compared(tmp_path):
    out = write_study(tmp_path / "out", methods=("plain", "ewc"))
    for seed in (1, 2):
        (out / f"plain-{seed}" / "record.json").unlink()
    (out / "ewc-0" / "record.json").unlink()
    ewc = next(summary for summary in summarize(read_entries(out)) if not summary.plain)
    assert ewc.difference is None
    assert ewc.notes == ["not compared with plain training: no seed in common"]


def test_a_plain_training_by_another_name():
    named = entry("plain", 0)
    named.record["method"] = "none"
    assert summarize([named])[0].plain


def calls(work):
    """How many functions `work` calls, Python's and C's."""
    count = 0

    def counting(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def told_apart(i):
    """By a label of the grid; by a key that an edited YAML left behind; by nothing but the method's name."""
    grid = {"labels": {"train.learning_rate": i}}
    return {
        "grid": grid,
        "edited": {"config": {"model": {"pretrained": "tiny"}, "train": {"x": i}}},
        "named": {"method": f"m{i}"},
    }


@pytest.mark.parametrize("kind", ["grid", "edited", "named"])
def test_many_records_take_linear_time(kind, monkeypatch):
    """Names, notes, tables, page, LaTeX: of three times the records three times the calls; a quadratic step makes nine."""
    monkeypatch.setattr(page, "pictures", lambda summaries: [])  # their first methods are drawn, however many there are
    base = base_scores()
    plain = Entry(record("plain", 0, 0, tuned_scores("plain", 0, base), base))
    one = record("ewc", 0, 0, tuned_scores("ewc", 0, base), base)

    def work(n):
        found = summarize([plain, *(Entry({**one, "order": i, **told_apart(i)[kind]}) for i in range(n))])
        assert len({summary.label for summary in found}) == n + 1
        parts = [tables.overview(found), tables.against_plain(found), tables.details(found), tables.seeds(found)]
        [part.markdown() for part in parts if part]
        tables.verdict(found)
        study = Study(found)
        page.render(study)
        latex.main_table(study), latex.tasks_table(found), area_table(study)

    work(3)  # what is imported and compiled once
    few, many = calls(lambda: work(150)), calls(lambda: work(450))
    assert many < 4 * few


def test_a_terminal_gets_the_first_lines_and_says_where_the_rest_is(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("cltk.report.api.LINES", 2)
    text = cltk.report(folder, markdown=tmp_path / "all.md")
    shown = " ".join(capsys.readouterr().out.split())
    assert "And 1 lines more: --markdown FILE has all." in shown
    assert "rows more" in shown
    assert text == (tmp_path / "all.md").read_text()
    assert "more: --markdown" not in text


# ---- the command


def test_terminal_tables_fit_100_columns(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert out.startswith("plain (3 seeds): learns; forgets on brown")
    assert "Against plain training" in out
    assert "…" not in out


def test_a_report_needs_no_torch(folder):
    code = "import sys, cltk; cltk.report(sys.argv[1]); assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)


def test_refusals(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no records here" in capsys.readouterr().err
    write_json(tmp_path / "odd.json", {"rows": []})
    assert main(["report", str(tmp_path / "odd.json")]) == 2
    assert "odd.json: not a record of `cltk run`" in capsys.readouterr().err
    with pytest.raises(InputError, match="there are no records"):
        cltk.report([])


def test_numbers_in_words():
    assert [tables.number(-0.00001, "nll", "+"), tables.number(0.0123, "acc")] == ["+0.000", "1.2"]
    assert [tables.count(None), tables.count(3.0), tables.count(3.25)] == ["", "3", "3.2"]
    assert [tables.p_value(None), tables.p_value(0.0004), tables.p_value(0.02)] == ["", "<0.001", "0.020"]
    assert tables.Table("t", ["method", "n"], [["a|b", "1"]]).markdown().splitlines()[4] == "| a\\|b | 1 |"


def test_measured_shows_every_row_and_the_macro_average():
    table = measured(entry("ewc", 0).record["retain"])
    assert [row[0] for row in table.rows] == ["arc", "piqa", "brown", "macro"]
    d = losses("ewc", "brown", 1)[0]
    found = stats.corrected(stats.paired_mean(d, LABELS))
    half = max(found.high - found.mean, found.mean - found.low)
    assert found.se * ref.t.ppf(0.975, N // 2 - 1) <= half < 1.2 * found.se * ref.t.ppf(0.975, N // 2 - 1)
    assert table.rows[2][5] == f"{d.mean():+.3f} ±{half:.3f}"


def test_the_experiment_of_the_fixture(experiment: Path, study: Path, monkeypatch, capsys):
    """Two seeds of three methods on a tiny model: one line each, with seeds x documents and plain training beside."""
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    head = experiment.read_text().split("grid:")[0]
    experiment.write_text(
        head + "grid: {seed: [0, 1], mitigators: {plain: [], low_lr: [low_lr: {factor: 0.5}]}}\nkeep_model: false\n"
    )
    assert main(["run", str(experiment), "--out", "out"]) == 0
    shown = capsys.readouterr().out
    assert "low_lr (2 seeds): " in shown
    assert "Against plain training" in shown
    found = {summary.label: summary for summary in summarize(read_entries("out"))}
    rows = [json.loads(path.read_text()) for path in sorted(Path("out").glob("low_lr*/record.json"))]
    old = [next(row["forgetting"] for row in one["retain"]["rows"] if row["task"] == "old_text") for one in rows]
    assert found["low_lr"].primary.points == pytest.approx(old)
    assert found["low_lr"].per_document
    assert found["low_lr"].difference.estimate.mean == pytest.approx(np.mean(old) - np.mean(found["plain"].primary.points))


def test_nats_a_document_are_not_averaged_with_nats_a_token(tmp_path):
    """lm-eval's tasks with a perplexity sum over an answer: beside such a task the endpoint is the mean of the texts."""

    def longer(scores):
        again = task("answers", "nll", 20 * np.asarray(scores.tasks["brown"].values["nll"]))
        texts = {}
        for name in ("brown", "news"):
            one = task(name, "nll", np.asarray(scores.tasks["brown"].values["nll"]) * (1 + (name == "news")))
            one.values["bits_per_byte"], one.higher_is_better["bits_per_byte"] = one.values["nll"], False
            texts[name] = one
        return replace(scores, tasks=scores.tasks | texts | {"answers": again})

    base, post = longer(base_scores()), longer(tuned_scores("plain", 0, base_scores()))
    write_json(tmp_path / "base.scores.json", base.to_json())
    write_json(tmp_path / "plain.json", record("plain", 0, 0, post, base))
    write_json(tmp_path / "plain.scores.json", post.to_json())
    (summary,) = summarize(read_entries(tmp_path))
    assert summary.primary_tasks == ["brown", "news"]
    assert summary.primary.estimate.mean == pytest.approx(1.5 * losses("plain", "brown", 1).mean())
    assert [one.task for one in summary.retain if one.metric == "nll"] == ["brown", "news", "answers"]

    # a record without accuracies, of before: its mean was over all three
    old = record("plain", 0, 0, post, base)
    rows = [row for row in old["retain"]["rows"] if row["metric"] in ("nll", "bits_per_byte")]
    mixed = {"metric": "nll", "n": 3 * N, "forgetting": 99.0, "ci": [98.0, 100.0]}
    old["retain"] |= {"rows": rows, "macro": old["retain"]["macro"] | mixed}
    write_json(tmp_path / "plain.json", old)
    (again,) = summarize(read_entries(tmp_path))
    assert again.primary.estimate.mean == pytest.approx(summary.primary.estimate.mean)
