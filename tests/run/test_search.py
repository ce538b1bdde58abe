"""`search:`: Optuna's trials as cells, resumed or not, on validation documents that the report does not have.

What people met: a study that goes on repeats its first trials (optuna#3255, #3526), or runs n_trials more (optuna#2638); trials
of a killed process stay "running" (optuna#3215, #4234); every rank draws its own values (transformers#18609); the best
value is that of the documents it was chosen on (keras-tuner#1018, srs-benchmark#351); the last training and not the best one is
what is left (transformers#23150); the metric is a column that happened to be the last (huggingface/notebooks#13).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError, RunError
from cltk.measure.splitting import halves, whole
from cltk.run.config import load_config
from cltk.run.estimates import estimate_yaml
from cltk.run.experiment import ExperimentRun, load
from cltk.run.records import read_record
from cltk.run.sampler import RANDOM, Past, best, suggest
from cltk.run.search_verdict import MUCH, check_budgets, none_within, verdict
from cltk.run.spec_search import SearchSpec, SpaceSpec
from tests.conftest import TINY

needs_optuna = pytest.mark.skipif("not __import__('importlib').util.find_spec('optuna')", reason="pip install optuna")

BASE = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no"}
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 24, cluster: document}]
  include_path: tasks
  kl_rows: 0
keep_model: false
speed: {autocast: false, onednn: false}
"""
)
SEARCH = (
    BASE
    + """\
mitigators: [l2_sp: {strength: 0.1}]
search:
  over:
    train.learning_rate: {log: [1.0e-4, 1.0e-1]}
    mitigators.l2_sp.strength: {log: [1.0e-3, 10.0]}
  trials: 4
  budget: {old_text: 0.5}
"""
)


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def write(text: str = SEARCH, **changes: str) -> Path:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    Path("x.yaml").write_text(text)
    return Path("x.yaml")


def trials(out: str = "out") -> list[dict[str, Any]]:
    found = [read_record(file) for file in Path(out, "search").glob("*/record.json")]
    return sorted(found, key=lambda record: record["search"]["trial"])


def told(records: list[dict[str, Any]]) -> list[Any]:
    return [[one["search"]["values"], one["digests"]["tuned_model"], one["learn"]["rows"]] for one in records]


# the sampler, against Optuna alone


@needs_optuna
def test_a_known_landscape_as_optuna_alone_finds_it() -> None:
    """gain log10 x, lost x / 10, budget 1: the best is x = 10. The loop below is Optuna's own, with `set_constraint`."""
    import optuna

    space = {"x": SpaceSpec(log=[1e-3, 1e3])}
    past: list[Past] = []
    for number in range(30):
        x = suggest(space, past, number)["x"]
        past.append(Past({"x": x}, math.log10(x), {"lost": x / 10 - 1}))
    at = best(past)
    assert at is not None
    assert 5 < past[at].values["x"] <= 10

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for number in range(30):
        study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=RANDOM, multivariate=True)
        trial = study.ask()
        x = trial.suggest_float("x", 1e-3, 1e3, log=True)
        trial.set_constraint("lost", x / 10 - 1)
        study.tell(trial, math.log10(x))
    theirs = [trial.params["x"] for trial in study.trials]
    assert [one.values["x"] for one in past][:RANDOM] == pytest.approx(theirs[:RANDOM], rel=1e-3)
    assert study.best_trial.params["x"] == pytest.approx(past[at].values["x"], rel=0.5)


@needs_optuna
def test_values_are_of_their_kind_and_in_their_range() -> None:
    space = {
        "r": SpaceSpec(log=[1, 64]), "s": SpaceSpec(linear=[0.0, 1.0]), "o": SpaceSpec(choices=["adamw_torch", "sgd"]),
        "e": SpaceSpec(log=[3.14159e-5, 3.14160e-5]),
    }  # fmt: skip
    for number in range(8):
        found = suggest(space, [], number)
        assert isinstance(found["r"], int)
        assert 1 <= found["r"] <= 64
        assert 0 <= found["s"] <= 1
        assert found["o"] in ("adamw_torch", "sgd")
        assert 3.14159e-5 <= found["e"] <= 3.14160e-5  # rounding does not leave the range
    assert suggest(space, [], 3) == suggest(space, [], 3) != suggest(space, [], 4)


@needs_optuna
@pytest.mark.parametrize("choices", [[1, 2, 3], [0.5, "auto", 2]])
def test_no_setting_is_tried_twice(choices: list[Any]) -> None:
    """Optuna alone comes back to the best of three at once (optuna#2021)."""
    spec = SearchSpec(over={"a": SpaceSpec(choices=choices), "b": SpaceSpec(linear=[1, 2])}, trials=50, budget={"macro": 1.0})
    assert spec.count == 6
    past: list[Past] = []
    for number in range(spec.count):
        values = suggest(spec.over, past, number, [one.values for one in past])
        past.append(Past(values, 1.0 if values["a"] == choices[0] else 0.0))
    assert len({json.dumps(one.values) for one in past}) == 6
    narrow = {"e": SpaceSpec(log=[3.14159e-5, 3.14160e-5])}  # of which 4 digits make two numbers
    tried = [{"e": 3.14159e-5}, {"e": 3.14160e-5}]
    assert suggest(narrow, [], 0, tried) not in tried


def test_the_best_is_within_and_the_first_of_equals() -> None:
    past = [Past({}, 3.0, {"a": 0.1}), Past({}, 1.0, {"a": 0.0}), Past({}, 2.0, {"a": -1.0}), Past({}, 2.0, {"a": -2.0})]
    assert best(past) == 2
    assert best(past[:1]) is None


# the documents


def test_the_parts_are_apart_and_clusters_whole() -> None:
    labels = [f"c{i // 3}" for i in range(60)]
    for seed in range(20):
        first, second = halves("t", 60, 0.4, seed, labels)
        assert sorted([*first, *second]) == list(range(60))
        assert not {labels[i] for i in first} & {labels[i] for i in second}
        assert len(first) == 24
    for total, named in ((1, ()), (4, ["one"] * 4)):
        with pytest.raises(InputError, match=r"t: of its .* none is left for the (test|validation) part"):
            halves("t", total, 0.5, 0, named)


def test_equal_documents_are_in_one_part() -> None:
    """Every text stands twice, in a cluster of its own each time; two tasks on the same documents are cut alike."""
    texts = [f"text {i % 20}" for i in range(40)]
    for labels in ([], [f"c{i}" for i in range(40)]):
        together = whole(texts, labels)
        assert len(set(together)) == 20
        for seed in range(10):
            parts = [{texts[i] for i in part} for part in halves("t", 40, 0.5, seed, together)]
            assert not parts[0] & parts[1]
    assert whole(texts, [f"c{i // 20}" for i in range(40)]) == ["c0"] * 40
    assert whole(texts[:20]) == []
    assert halves("arc", 30, 0.5, 0) == halves("arc_de", 30, 0.5, 0)


def test_what_is_searched_on_is_not_reported() -> None:
    """By the rows and documents themselves: of a text with clusters, of a task, and of the new task."""
    sides = {}
    for name in ("validation", "test"):
        text = BASE.replace("  kl_rows: 0\n", f"  kl_rows: 0\n  split: {{measure: {name}}}\n")
        experiment = cltk.load(write(text), "out")
        cell = experiment.cells[0]
        suite = experiment.inputs.suite(cell)
        loaded = suite.load()["tasks"]["toy"]
        old = next(one for one in suite.texts if one.name == "old_text")
        new = suite.texts[0]
        sides[name] = (
            {json.dumps(row) for row in suite.chosen["toy"].of(loaded.eval_docs)}, {row["document"] for row in old.rows},
            {str(row["input_ids"]) for row in new.rows}, new.name, experiment.inputs.measured(cell),
        )  # fmt: skip
        assert any("part of a split" in note for note in suite.about()["toy"])
    (docs, clusters, rows, name, key), (others, apart, held, other, elsewhere) = sides["validation"], sides["test"]
    assert not docs & others
    assert len(docs | others) == 12
    assert not clusters & apart
    assert not rows & held
    assert (name, other) == ("validation", "heldout")
    assert key != elsewhere


def test_budgets_that_are_two_things_or_all_there_is_are_refused() -> None:
    measured = {"toy": ["acc", "acc_norm", "logprob"], "nll": ["nll", "bits_per_byte"], "gsm8k": ["exact_match"]}
    check_budgets(
        {"toy": 0.5, "logprob": 2.0, "toy/logprob": 3.0, "gsm8k/exact_match,strict-match": 0.1, "macro": 0.9}, measured, "s"
    )
    for name, most, line in (
        ("nll", 0.5, "s.budget.nll: a task and a metric have this name; write nll/METRIC"),
        ("toy", 1.0, "s.budget.toy: 1 is all that acc_norm has"),
        ("acc", 2.0, "s.budget.acc: 2 is all that acc has"),
        ("gsm8k/exact_match,strict-match", 1.0, "1 is all that exact_match has"),
        ("macro", 1.0, "1 is all that acc_norm has"),
        ("toy/nll", 0.5, "s.budget.toy/nll: nothing old has this name"),
    ):
        with pytest.raises(InputError, match=line):
            check_budgets({name: most}, measured, "s")


# trials


@needs_optuna
def test_a_search_end_to_end_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    file = write()
    assert main(["run", str(file), "--out", "out", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "search of l2_sp: 4 trials, 0 of them done" in said
    assert "train.learning_rate: log 0.0001 to 0.1" in said
    assert not Path("out").exists()

    assert main(["run", str(file), "--out", "out"]) == 0
    found, (final,) = trials(), [read_record(one) for one in Path("out").glob("*/record.json")]
    verdicts = [verdict(record, record["search"]) for record in found]
    assert len(found) == 4
    assert len({json.dumps(record["search"]["values"]) for record in found}) == 4
    for record, (gain, over) in zip(found, verdicts, strict=True):
        row = next(row for row in record["learn"]["rows"] if row["task"] == "validation")
        text = next(row for row in record["retain"]["rows"] if (row["task"], row["metric"]) == ("old_text", "nll"))
        assert gain == pytest.approx(row["pre"] - row["post"])
        assert over == {"old_text/nll": pytest.approx((text["post"] - text["pre"]) / 0.5 - 1)}
        assert record["config"]["train"]["learning_rate"] == record["search"]["values"]["train.learning_rate"]
        assert record["config"]["mitigators"][0]["l2_sp"]["strength"] == record["search"]["values"]["mitigators.l2_sp.strength"]
        assert record["labels"]["trial"] == record["search"]["trial"]
    inside = [at for at, (_, over) in enumerate(verdicts) if over["old_text/nll"] <= 0]
    won = max(inside, key=lambda at: verdicts[at][0] or 0)
    assert final["search"]["trial"] == won
    assert final["search"]["validation"]["gain"] == verdicts[won][0]
    assert final["config"]["train"]["learning_rate"] == found[won]["search"]["values"]["train.learning_rate"]
    assert final["digests"]["tuned_model"] == found[won]["digests"]["tuned_model"]  # the same training, on other documents
    assert {row["task"] for row in final["learn"]["rows"]} == {"heldout"}
    assert not Path("out/search/cache").exists()
    said = capsys.readouterr().out
    assert "chosen on the validation documents" in " ".join(said.split())

    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("record.json")}
    assert main(["run", str(file), "--out", "out"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("out").rglob("record.json")}
    capsys.readouterr()
    assert main(["run", str(file), "--out", "out", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"trial {won}: train.learning_rate=" in said
    assert "l2_sp_seed=0 (has a record)" in said
    assert str({"l2_sp": {"strength": found[won]["search"]["values"]["mitigators.l2_sp.strength"]}}) in said
    assert "within the budget" in said
    assert main(["report", "out/search", "--html", "page.html"]) == 0
    said = capsys.readouterr().out
    assert "Trials" in said
    assert "within" in said
    assert "all on validation documents" in Path("page.html").read_text()
    for file in (next(Path("out").glob("*/record.json")), next(Path("out/search").glob("*trial=2*/record.json"))):
        assert main(["reproduce", str(file), "--out", f"again-{file.parent.name}"]) == 0

    # another budget asks something else of the same trials: verdicts are by it, and nothing is trained again
    done = {path: read_record(path)["digests"] for path in Path("out/search").glob("*/record.json")}
    for budget in (50.0, 0.4):
        code = main(["run", "x.yaml", "--out", "out", f"search.budget.old_text={budget}"])
        assert done == {path: read_record(path)["digests"] for path in Path("out/search").glob("*/record.json")}
        assert all(record["search"]["budget"] == {"old_text": budget} for record in trials())
        finals = [read_record(one) for one in Path("out").glob("*/record.json")]
        assert code == 1 or any(record["search"]["budget"] == {"old_text": budget} for record in finals)


@needs_optuna
def test_a_killed_search_goes_on_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its second trial, gone on with, and then made longer: the trials are those of one that ran through."""
    monkeypatch.setattr("cltk.run.sampler.RANDOM", 2)  # the third trial looks at the others
    changes = {"retain: [toy, ": "retain: [", "limit: 24": "limit: 12"}
    file = write(**changes, **{"trials: 4": "trials: 3"})
    load(file, "whole").run()
    attempt, seen = ExperimentRun.attempt, []

    def dying(self: ExperimentRun, order: int, say: Any) -> str:
        seen.append(order)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return attempt(self, order, say)

    monkeypatch.setattr(ExperimentRun, "attempt", dying)
    write(**changes, **{"trials: 4": "trials: 2"})
    with pytest.raises(KeyboardInterrupt):
        load(file, "cut").run()
    assert len(trials("cut")) == 1
    load(file, "cut").run()
    assert told(trials("cut")) == told(trials("whole"))[:2]
    write(**changes, **{"trials: 4": "trials: 3"})
    load(file, "cut").run()
    assert told(trials("cut")) == told(trials("whole"))


def test_what_diverged_is_not_what_has_no_interval() -> None:
    """A text of one cluster has none, and no learning rate will give it one."""
    past = {
        0: Past({}, 1.0, {"old_text/nll": MUCH}),
        1: Past({}, 0.0, {"old_text": MUCH}),
        2: Past({}, 1.0, {"old_text/nll": 0.5}),
    }
    said = none_within(past, {}, 3, [1])
    assert "the nearest is trial 2, with 1.50 times" in said
    assert "; 1 diverged; 1 have no number for old_text/nll (an interval needs two clusters);" in said
    assert "diverged" not in none_within({0: past[0]}, {}, 1)
    assert "no number" not in none_within({1: past[1]}, {}, 1, [1])


@needs_optuna
def test_none_within_says_which_is_nearest_and_the_others_run() -> None:
    """At a learning rate of 1 the tiny model loses all it knew."""
    grid = "grid:\n  mitigators:\n    plain: []\n    l2: [l2_sp: {strength: 0.1}]\n"
    text = SEARCH.replace("mitigators: [l2_sp: {strength: 0.1}]\n", grid).replace("trials: 4", "trials: 1\n  method: l2")
    file = write(
        text.replace("mitigators.l2_sp.strength: {log: [1.0e-3, 10.0]}", "").replace("log: [1.0e-4, 1.0e-1]", "choices: [1.0]")
    )
    with pytest.raises(RunError, match=r"search: none of 1 trials is within the budget; the nearest is trial 0, with .* times"):
        load(file, "out").run()
    (only,) = [read_record(one) for one in Path("out").glob("*/record.json")]
    assert only["method"] == "plain"
    assert {row["task"] for row in only["learn"]["rows"]} == {"heldout"}
    assert "search" not in only


@needs_optuna
def test_what_diverges_is_over_every_budget_and_not_done_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A search over two choices has two trials, whatever is asked for, and ends although one of them cannot be trained."""
    text = SEARCH.replace("    mitigators.l2_sp.strength: {log: [1.0e-3, 10.0]}\n", "").replace("trials: 4", "trials: 9")
    file = write(text.replace("{log: [1.0e-4, 1.0e-1]}", "{choices: [1.0e+30, 1.0e-3]}"))
    assert main(["run", str(file), "--out", "out"]) == 0
    (failed,) = Path("out/search").glob("*/failed.json")
    assert not (failed.parent / "checkpoints").exists()
    before = failed.stat().st_mtime_ns
    (only,) = trials()
    assert only["search"]["values"] == {"train.learning_rate": 1.0e-3}
    assert main(["run", str(file), "--out", "out"]) == 0
    assert failed.stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["run", str(file), "--out", "out", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 trials (2 settings are all there are), 2 of them done" in said
    assert "train.learning_rate=1e+30 (diverged)" in said
    (failed.parent / "checkpoints").mkdir()  # as one that was killed leaves them
    assert main(["clean", "out", "--unfinished", "--yes"]) == 0
    assert not (failed.parent / "checkpoints").exists()
    assert failed.exists()
    next(Path("out").glob("*/record.json")).unlink()
    assert main(["report", "out"]) == 2
    assert "no records here; `cltk run` writes one for every cell; the trials of its search are in out/search" in (
        capsys.readouterr().err
    )


@needs_optuna
def test_a_trial_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = ExperimentRun.attempt

    def failing(self: ExperimentRun, order: int, say: Any) -> str:
        return "boom" if self.out.name == "search" and order == 1 else attempt(self, order, say)

    monkeypatch.setattr(ExperimentRun, "attempt", failing)
    with pytest.raises(RunError, match="1 of 3 trials failed; the first: boom"):
        load(write(**{"trials: 4": "trials: 3\n  parallel: 3"}), "out").run()
    assert [record["search"]["trial"] for record in trials()] == [0, 2]
    assert len(list(Path("out").glob("*/record.json"))) == 1  # of those that are there the best was chosen


def test_an_estimate_takes_the_largest_values_and_counts_the_trainings() -> None:
    text = (
        BASE
        + "mitigators: [lora: {r: 2}]\nsearch:\n  over: {mitigators.lora.r: {log: [1, 16]}}\n  trials: 7\n"
        + "  budget: {macro: 1}\n"
    )
    (found,) = estimate_yaml(write(text))
    (alone,) = estimate_yaml(write(text.partition("search:")[0].replace("r: 2", "r: 16")))
    assert found.trained == alone.trained > 0
    assert "take the time of 8 trainings and the memory of one" in " ".join(found.notes)


# refusals


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("  budget: {old_text: 0.5}\n", "", "x.yaml:15: search.budget: this key is required"),
        ("old_text: 0.5", "old_text: 0", "x.yaml:20: search.budget.old_text: .* greater than 0"),
        ("train.learning_rate: {log", "train.learning_rat: {log", "x.yaml:17: train.learning_rat: unknown .*'learning_rate'"),
        (
            "l2_sp.strength: {log",
            "l2_sp.strenght: {log",
            "x.yaml:18: l2_sp.strenght: unknown argument; did you mean 'strength'",
        ),
        ("l2_sp.strength: {log", "ewc.strength: {log", "x.yaml:18: search.over.mitigators.ewc.strength: the method has l2_sp"),
        ("train.learning_rate: {", "data.max_length: {", "x.yaml:17: search.over.data.max_length: cannot be searched"),
        ("[1.0e-3, 10.0]", "[0, 10.0]", "x.yaml:18: .*a log range begins above 0"),
        ("{log: [1.0e-3, 10.0]}", "{linear: [-1.0, 10.0]}", "x.yaml:18: l2_sp: strength is -1.0"),
        ("{log: [1.0e-3, 10.0]}", "{lag: [1.0e-3, 10.0]}", "x.yaml:18: .*lag: unknown key; did you mean 'log'"),
        ("{log: [1.0e-3, 10.0]}", "{choices: [1, 1]}", "x.yaml:18: .*stands twice"),
        ("  kl_rows: 0\n", "  during: {every: 1}\n  kl_rows: 0\n", "x.yaml:11: evals.during: cannot stand beside `search`"),
        ("  trials: 4", "  trials: 4\n  method: ewc", "search.method: no cell has the method 'ewc'"),
        ("keep_model: false", "grid: {train.warmup_steps: [0, 1]}", "the grid gives l2_sp several train.warmup_steps"),
        ("name: old_text", "name: validation", "the name 'validation' is taken"),
        ("keep_model: false", "grid: {search.trials: [1, 2]}", "x.yaml:12: grid.search.trials: a grid does not vary a search"),
        (
            "  validation: 0.15\n  heldout: 0.2\n",
            "  validation: {path: new.jsonl, prompt: question, completion: answer, limit: 4}\n"
            "  heldout: {path: new.jsonl, prompt: question, completion: answer, sample: 4}\n",
            "x.yaml:5: data.heldout: is data.validation, on which the search chooses",
        ),
    ],
)
def test_what_the_file_says_wrong_is_one_line(old: str, new: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        load_config(write(**{old: new}))
    assert "\n" not in str(caught.value)


@needs_optuna
@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("old_text: 0.5", "old_txt: 0.5", "x.yaml: search.budget.old_txt: nothing old has this name; did you mean 'old_text'"),
        ("old_text: 0.5", "toy: 5", "x.yaml: search.budget.toy: 5 is all that acc_norm has, a share of 1; 1 pp is 0.01"),
        ("old_text: 0.5", "macro: 1", "x.yaml: search.budget.macro: 1 is all that acc_norm has"),
        ("old_text: 0.5", "old_text/acc: 0.5", "x.yaml: search.budget.old_text/acc: nothing old has this name"),
        (
            "train.learning_rate: {log: [1.0e-4, 1.0e-1]}",
            "train.optim: {choices: [sgd, lomo]}",
            "search.over.train.optim: lomo",
        ),
        ("  trials: 4", "  trials: 4\n  gain: toy", "x.yaml: search.gain: 'toy' is not learned"),
        ("limit: 24", "limit: 1", "old_text: of its 1 documents none is left for the .* part .search.validation"),
    ],
)
def test_what_only_the_inputs_show_is_said_before_weights(
    old: str, new: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cltk.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    assert main(["run", str(write(**{old: new})), "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert re.search(line, said), said
    assert "Traceback" not in said


def test_without_optuna_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cltk.run.sampler.find_spec", lambda name: None)
    for more in ([], ["--dry-run"]):
        assert main(["run", str(write()), "--out", "out", *more]) == 2
        assert "x.yaml: search: needs Optuna; pip install 'cltk-forgetting[search]'" in capsys.readouterr().err
    assert not Path("out").exists()


@needs_optuna
@pytest.mark.parametrize("option", [["--ray"], ["--cells", "1/2"], ["--no-wait"], ["--only", "seed=1", "--dry-run"]])
def test_a_search_is_not_cut_into_shares(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(write(**{"keep_model: false": "grid: {seed: [0, 1]}"})), "--out", "out", *option]) == 2
    assert "the trials of `search` follow from one another" in capsys.readouterr().err


def test_overrides_reach_a_search_or_are_refused() -> None:
    file = write()
    plan = load_config(
        file, ["search.trials=9", "search.over.train.learning_rate={choices: [1.0e-3]}", "search.budget.toy=0.1"]
    )
    search = plan.experiment.search
    assert search is not None
    assert (search.trials, search.budget) == (9, {"old_text": 0.5, "toy": 0.1})
    assert search.over["train.learning_rate"].choices == [1e-3]
    assert list(search.over) == ["train.learning_rate", "mitigators.l2_sp.strength"]
    assert load_config(file, ["search=null"]).cells[0].config.evals.split is None
    with pytest.raises(
        InputError, match=r"train.learning_rate=1.0e-5: the search sets it; give search.over.train.learning_rate="
    ):
        load_config(file, ["train.learning_rate=1.0e-5"])
    grid = {"mitigators: [l2_sp: {strength: 0.1}]\n": "grid: {mitigators: {plain: [], l2: [l2_sp: {strength: 0.1}]}}\n"}
    with_plain = write(**grid, **{"  trials: 4": "  trials: 4\n  method: l2"})
    plain, _ = load_config(with_plain, ["train.learning_rate=1.0e-5"]).cells  # which is not searched
    assert plain.config.train["learning_rate"] == 1e-5


@needs_optuna
def test_strict_refuses_before_the_trials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cltk.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    text = SEARCH.replace("[l2_sp: {strength: 0.1}]", "[replay: {memory: old.jsonl, fraction: 0.25}]")
    file = write(
        text.replace("mitigators.l2_sp.strength: {log: [1.0e-3, 10.0]}", "mitigators.replay.fraction: {linear: [0.1, 0.5]}")
    )
    assert main(["run", str(file), "--out", "out", "--strict"]) == 2
    assert "old_text: of" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_part_of_the_first_documents(tiny: Any, tokenizer: Any) -> None:
    """lm-eval takes a limit or places: both together cost the model's loading, and then the task."""
    sides = []
    for name in ("validation", "test"):
        text = BASE.replace("  kl_rows: 0\n", f"  kl_rows: 0\n  limit: 8\n  split: {{measure: {name}}}\n")
        experiment = cltk.load(write(text), "out")
        suite = experiment.inputs.suite(experiment.cells[0])
        scores = suite.evaluate(tiny(), tokenizer).tasks["toy"]
        asked = {json.dumps(row) for row in suite.chosen["toy"].of(suite.load()["tasks"]["toy"].eval_docs)}
        assert len(scores) == len(asked)
        sides.append(asked)
    first = {json.dumps(row) for row in list(suite.load()["tasks"]["toy"].eval_docs)[:8]}
    assert sides[0] | sides[1] == first
    assert not sides[0] & sides[1]
