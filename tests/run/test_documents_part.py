"""`evals.documents`: references score all documents, the other cells part of them, and nothing takes the part for the whole.

What people met: random documents that differ from model to model (UKGovernmentBEIS/inspect_ai#2118), subsets by position
(EleutherAI/lm-evaluation-harness#2520), estimates from a part compared with whole ones (felipemaiapolo/tinyBenchmarks#2).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError, RunError
from cltk.measure.inclusion import flip_sizes, inclusion
from cltk.measure.scores import Scores
from cltk.measure.twophase import two_phase
from cltk.run.cells import Work
from cltk.run.config import load_config
from cltk.run.records import read_json
from tests.conftest import TINY, sentences, write_jsonl

TRAIN = 'train: {learning_rate: 3.0e-3, max_steps: 4, per_device_train_batch_size: 4, save_strategy: "no"}\nkeep_model: false\n'
GRID = "grid: {mitigators: {low_lr: [low_lr: {factor: 0.5}], plain: [], lower: [low_lr: {factor: 0.2}]}}\n"
HALF = 0.02
OLD = "retain: [toy, {text: old.jsonl, name: old_text, cluster: document}]"


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def write(documents: str, evals: str = OLD, grid: str = GRID, rest: str = "") -> Path:
    Path("x.yaml").write_text(
        TINY + TRAIN + f"evals:\n  include_path: tasks\n  kl_rows: 0\n  {evals}\n  documents: {documents}\n{grid}{rest}"
    )
    return Path("x.yaml")


def kept(experiment: Any, method: str) -> tuple[dict[str, Any], Scores]:
    cell = next(cell for cell in experiment.cells if cell.method == method)
    return read_json(experiment.folder(cell) / "record.json"), Scores.from_json(
        read_json(experiment.folder(cell) / "scores.json")
    )


def test_references_are_scored_whole_and_first_and_predict_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    write("{total: 100, scored: 32, reference: plain}")
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert said.index("plain_seed=0: train") < said.index("low_lr_seed=0: train")
    experiment = cltk.load("x.yaml", "out")
    base = Scores.from_json(read_json(next(Path("out").glob("base-*/scores.json"))))
    plain, whole = kept(experiment, "plain")
    assert "documents" not in plain
    assert {row["documents"] for row in plain["retain"]["rows"]} == {None}
    assert len(whole.tasks["old_text"]) == len(base.tasks["old_text"]) == 100
    record, scores = kept(experiment, "low_lr")
    places = record["documents"]["places"]["old_text"]
    assert record["documents"]["scored"] == {"old_text": [32, 100]}  # 12 and 18 documents are scored whole
    assert record["documents"]["references"] == {"plain": plain["digests"]["tuned_model"]}
    assert scores.tasks["old_text"].doc_hash == [base.tasks["old_text"].doc_hash[i] for i in places]
    clusters = np.array(base.tasks["old_text"].cluster)
    assert all(set(np.flatnonzero(clusters == clusters[i])) <= set(places) for i in places)
    before, reference, after = (np.array(one.tasks["old_text"].values["nll"]) for one in (base, whole, scores))
    found = two_phase(after - before[places], places, np.column_stack([before, reference - before]), clusters)
    row = next(row for row in record["retain"]["rows"] if row["task"] == "old_text" and row["metric"] == "nll")
    assert (row["forgetting"], row["se"]) == pytest.approx((found.estimate.mean, found.estimate.se))
    assert (row["test"], row["n"]) == ("two-phase t", 32)
    assert any(note.startswith("old_text: 32 scored of 100, R^2 ") for note in record["retain"]["notes"])
    other, more = kept(experiment, "lower")
    assert other["documents"]["places"] == record["documents"]["places"]
    assert more.tasks["old_text"].doc_hash == scores.tasks["old_text"].doc_hash
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert "part of the documents was scored" in " ".join(capsys.readouterr().out.split())


def test_as_many_as_the_half_width_needs() -> None:
    run = cltk.load(write("{scored: auto, half_width: " + str(HALF) + "}", OLD.replace("toy, ", "")), "out")
    run.run()
    record, scores = kept(run, "lower")
    row = next(row for row in record["retain"]["rows"] if row["metric"] == "nll")
    assert record["documents"]["scored"]["old_text"] == [len(scores.tasks["old_text"]), 120]
    assert 64 <= len(scores.tasks["old_text"]) < 120
    low, high = row["ci"]
    assert max(high - row["forgetting"], row["forgetting"] - low) <= HALF
    assert record["documents"]["looks"]["old_text"] >= 1


def test_a_failed_reference_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    grid = "grid: {mitigators: {plain: [low_lr: {factor: 1.0e+33}], low_lr: [low_lr: {factor: 0.5}]}}\n"
    run = cltk.load(write("{scored: 32}", OLD, grid), "out")
    with pytest.raises(RunError, match="2 of 2 cells failed"):
        run.run()
    error = read_json(run.folder(run.cells[1]) / "failed.json")["error"]
    assert "the reference plain_seed=0 has no scores" in error


def test_another_reference_is_another_cell() -> None:
    one = cltk.load(write("{scored: 32}"), "out")
    folders = {cell.method: one.folder(cell).name for cell in one.cells}
    two = cltk.load(write("{scored: 32}", OLD, GRID.replace("plain: []", "plain: [low_lr: {factor: 0.9}]")), "out")
    changed = {cell.method: two.folder(cell).name for cell in two.cells}
    assert all(folders[name] != changed[name] for name in folders)
    none = cltk.load(write("{scored: 32}", OLD, GRID).parent / "x.yaml", "out")
    assert none.inputs.measured(none.cells[0]) == one.inputs.measured(one.cells[0])  # the start model is scored once


@pytest.mark.parametrize(
    ("documents", "evals", "message"),
    [
        (
            "{scored: 32, reference: plian}",
            OLD,
            r"x\.yaml:\d+: evals\.documents\.reference: no cell has the method 'plian'.*plain",
        ),
        ("{scored: auto}", OLD, "half_width belongs to"),
        ("{scored: 32, half_width: 0.01}", OLD, "half_width belongs to"),
        ("{scored: 0}", OLD, "evals.documents.scored"),
        ("{scored: 5, total: 8}", f"{OLD}\n  sample: 9", "documents.total is a sample"),
        ("{scored: 5, total: 8}", f"{OLD}\n  limit: 9", "give documents.total in its place"),
        ("{scored: 5}", f"{OLD}\n  limit: 9", "give documents.total in its place"),
        ("{scored: 5, totl: 8}", OLD, "totl: unknown key"),
        ("{scored: auto, half_width: 0.01, draw: margin}", OLD, "draw: margin needs a number"),
        ("{scored: 5, draw: margins}", OLD, "evals.documents.draw"),
        ("{scored: 5, reference: []}", OLD, "evals.documents.reference"),
    ],
)
def test_what_does_not_fit_is_refused_when_read(documents: str, evals: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(documents, evals))


def test_prompts_that_depend_on_the_documents_before_are_refused() -> None:
    run = cltk.load(write("{scored: 5}", f"{OLD}\n  num_fewshot: 2"), "out")
    with pytest.raises(InputError, match=r"evals.documents: task toy: its examples are drawn document by document"):
        run.check()


def test_streams_and_groups_are_refused() -> None:
    Path("tasks/both.yaml").write_text("group: both\ntask: [toy]\naggregate_metric_list: [{metric: acc}]\n")
    with pytest.raises(InputError, match=r"evals.documents: both is a group"):
        cltk.load(write("{scored: 5}", "retain: [both]"), "out").check()
    data = "data: {train: {path: new.jsonl, prompt: question, completion: answer}, max_length: 64}"
    Path("x.yaml").write_text(
        f"model: {{pretrained: tiny-llama}}\n{TRAIN}stages: [{{name: one, {data}}}]\n"
        "evals: {documents: {scored: 5}}\ngrid: {mitigators: {plain: []}}\n"
    )
    with pytest.raises(InputError, match="a stream is scored whole"):
        load_config("x.yaml")


def quiz(count: int = 60) -> None:
    """More documents of the toy task than a cell scores."""
    words = sentences(count, seed=3)
    rows = [{"q": s, "choices": [words[i - 1].split()[0], s.split()[-1]], "label": i % 2} for i, s in enumerate(words)]
    write_jsonl(Path("tasks/docs.jsonl"), rows)


def test_by_margin_the_record_and_its_scores_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    quiz()
    write("{total: 60, scored: 20, draw: margin}", "retain: [toy, {text: old.jsonl, name: old_text}]")
    assert main(["run", "x.yaml", "--dry-run", "--out", "out"]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.split("\n") if "2 cells score part of these, drawn by margin: " in line]
    assert {"toy 20", "heldout 12", "old_text 20"} == set(line.partition("margin: ")[2].partition(";")[0].split(", ")), line
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    experiment = cltk.load("x.yaml", "out")
    record, scores = kept(experiment, "low_lr")
    whole, _ = kept(experiment, "plain")[1], capsys.readouterr()
    base = Scores.from_json(read_json(next(Path("out").glob("base-*/scores.json"))))
    before, other = (np.array(one.tasks["toy"].values["acc_norm"]) for one in (base, whole))
    margin = np.array(base.tasks["toy"].values["margin_norm"])
    pi, places = inclusion(flip_sizes(margin, before - other), 20), record["documents"]["places"]["toy"]
    unequal = bool(np.ptp(pi))
    assert len(places) == 20
    assert len(record["documents"]["places"]["old_text"]) == 20  # about 20, drawn equally
    if unequal:
        assert record["documents"]["chance"]["toy"] == pytest.approx(pi[places])
        assert scores.tasks["toy"].weights["acc"] == pytest.approx(1 / pi[places])
    assert "old_text" not in record["documents"].get("chance", {})
    x = np.column_stack([before, margin, before - other])
    after = np.array(scores.tasks["toy"].values["acc_norm"])
    found = two_phase(before[places] - after, places, x, None, pi if unequal else None, 1.0)
    row = next(row for row in record["retain"]["rows"] if (row["task"], row["metric"]) == ("toy", "acc_norm"))
    assert (row["forgetting"], row["se"]) == pytest.approx((found.estimate.mean, found.estimate.se))
    assert unequal, "the fixture's reference flips a document, else this test shows nothing"
    cell = next(cell for cell in experiment.cells if cell.method == "low_lr")
    assert not (experiment.folder(cell) / "lm_eval").exists()
    assert main(["report", "out"]) == 0
    assert "part of the documents was scored" in " ".join(capsys.readouterr().out.split())
    lower = next(cell for cell in experiment.cells if cell.method == "lower")
    both = [str(experiment.folder(one) / "scores.json") for one in (cell, lower)]
    assert main(["compare", *both]) == 0  # the same documents, weighted alike
    capsys.readouterr()
    plain = str(next(Path("out").glob("plain*/scores.json")))
    for words in (["compare", plain, both[0]], ["compare", plain, both[0], "--prompts", "differ"]):
        main(words)  # the text, which was drawn equally, may still be compared
        assert "drawn with unequal probabilities" in " ".join("".join(capsys.readouterr()).split())
    assert main(["report", "out", "--lm-eval", "exported"]) == 2
    assert "lm-eval's files know no weights" in capsys.readouterr().err


@pytest.mark.parametrize("documents", ["{total: 60, scored: 20, draw: margin}", "{scored: auto, half_width: 0.05}"])
def test_a_cell_scored_in_part_is_reproduced_with_its_references(documents: str, capsys: pytest.CaptureFixture[str]) -> None:
    quiz()
    write(documents, "retain: [toy, {text: old.jsonl, name: old_text}]")
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    (low,) = Path("out").glob("low_lr*/record.json")
    capsys.readouterr()
    assert main(["reproduce", str(low), "--out", "again"]) == 0
    assert "low_lr_seed=0: reproduced bit for bit" in capsys.readouterr().out
    again = read_json(next(Path("again").glob("low_lr*/record.json")))
    assert again["documents"] == read_json(low)["documents"]
    assert low.parent.name == next(Path("again").glob("low_lr*/record.json")).parent.name  # the same cell, references and all


def test_a_folder_of_records_is_reproduced_and_one_without_its_reference_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write("{scored: 32, reference: [plain, lower]}")
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    capsys.readouterr()
    assert main(["reproduce", "out", "--out", "again"]) == 0
    assert capsys.readouterr().out.count("reproduced bit for bit") == 3
    (low,) = Path("out").glob("low_lr*/record.json")
    next(Path("out").glob("plain*/scores.json")).unlink()
    assert main(["reproduce", str(low), "--out", "third"]) == 2
    said = capsys.readouterr().err
    assert "plain (" in said
    assert "has no record with scores beside it" in " ".join(said.split())
    assert not Path("third").exists()


def test_memory_is_estimated_as_if_all_were_scored(capsys: pytest.CaptureFixture[str]) -> None:
    """What is scored has no part in a training's memory; the references need not be there."""
    told = []
    for documents in ("{scored: 32}", "null"):
        write(documents)
        assert main(["estimate", "--yaml", "x.yaml"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert "low_lr" in told[0]


def test_a_draw_that_fell_back_to_equal_probabilities_is_said() -> None:
    """A reference that lost nothing says nothing of who may flip; a text has no margin, and nobody expects one."""
    quiz()
    grid = "grid: {mitigators: {low_lr: [low_lr: {factor: 0.5}], plain: [wise_ft: {alpha: 0.0}]}}\n"
    write("{total: 60, scored: 20, draw: margin}", "retain: [toy, {text: old.jsonl, name: old_text}]", grid)
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    record, scores = kept(cltk.load("x.yaml", "out"), "low_lr")
    said = [note for note in record["retain"]["notes"] if "equal probabilities" in note]
    assert said == ["toy: drawn with equal probabilities, as acc_norm has no margin there or the references lost none of it"]
    assert "chance" not in record["documents"]
    assert len(scores.tasks["toy"]) == 20
    assert "drawn" not in scores.tasks["toy"].settings


def generated(name: str, rest: str) -> None:
    """A task of generated texts over the toy task's documents."""
    documents = Path("tasks/docs.jsonl").resolve()
    Path(f"tasks/{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {documents}}}}}\n"
        "validation_split: validation\noutput_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[label]}}'\n"
        f"generation_kwargs: {{until: ['.'], max_gen_toks: 4}}\n{rest}\n"
    )


@pytest.mark.parametrize(
    "documents", ["{scored: auto, half_width: 0.3}", "{total: 60, scored: 20, draw: margin}", "{total: 60, scored: 20}"]
)
def test_what_has_no_score_a_document_is_scored_whole_or_left_out(documents: str) -> None:
    """A corpus metric needs all documents, a task whose own code fails has none: neither stops the cells that score a part."""
    quiz()
    generated("corpus", "metric_list: [{metric: bleu}]")
    Path("tasks/boom.py").write_text("def f(doc, results):\n    raise ValueError('no answer found')\n")
    generated("broken", "process_results: !function boom.f\nmetric_list: [{metric: acc}]")
    grid = "grid: {mitigators: {plain: [], low_lr: [low_lr: {factor: 0.5}]}}\n"
    write(documents, "retain: [toy, corpus, broken]", grid)
    assert main(["run", "x.yaml", "--out", "out", "--trust"]) == 0
    for method in ("plain", "low_lr"):
        record, scores = kept(cltk.load("x.yaml", "out", trust=True), method)
        assert {row["task"] for row in record["retain"]["rows"]} == {"toy", "corpus"}
        assert len(scores.tasks["toy"]) == (60 if method == "plain" else pytest.approx(40, abs=20))
        assert "every metric" in record["retain"]["left_out"]["broken"]


def test_one_document_drawn_by_margin_has_a_row_without_an_interval() -> None:
    quiz()
    grid = "grid: {mitigators: {plain: [], low_lr: [low_lr: {factor: 0.5}], control: [l2_sp: {strength: 0.0}]}}\n"
    write("{total: 60, scored: 1, draw: margin}", "retain: [toy]", grid)
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    record, _ = kept(cltk.load("x.yaml", "out"), "low_lr")
    row = next(row for row in record["retain"]["rows"] if row["metric"] == "acc_norm")
    assert row["verdict"].startswith("cannot tell")
    (low,) = Path("out").glob("low_lr*/record.json")  # and control has the weights of its reference, but not all documents
    assert main(["reproduce", str(low), "--out", "again"]) == 0


def test_a_record_that_cannot_be_run_again_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("{scored: 32}", grid="grid: {mitigators: {plain: [], low_lr: [low_lr: {factor: 0.5}]}}\n")
    assert main(["run", "x.yaml", "--out", "out"]) == 0
    cell, seen = Work.cell, []

    def failing(self: Any, *given: Any) -> Any:
        seen.append(given)
        if len(seen) == 1:
            raise RuntimeError("CUDA out of memory")
        return cell(self, *given)

    monkeypatch.setattr(Work, "cell", failing)
    capsys.readouterr()
    assert main(["reproduce", "out", "--out", "again", "--json", "found.json"]) == 1
    told = capsys.readouterr()
    assert told.out.count("reproduced bit for bit") == 1
    assert len(json.loads(Path("found.json").read_text())) == 1
    assert "1 of 2 records: " in told.err
    assert "--out again goes on with what was done" in " ".join(told.err.split())
    assert main(["reproduce", "out", "--out", "again"]) == 0
    told = capsys.readouterr()
    assert told.out.count("reproduced bit for bit") == 2
    assert told.out.count("was there already") == 1
    assert len(seen) == 3
