"""`evals.during` from YAML: the curve in the record, the page and the event files; the same weights; runs of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.run.loggers import Loggers
from cltk.run.records import read_json
from tests.conftest import TINY

BASE = (
    TINY
    + """\
train: {learning_rate: 3.0e-3, max_steps: 6, per_device_train_batch_size: 4, save_strategy: "no", logging_steps: 2}
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 12, cluster: document}]
  include_path: tasks
  limit: 8
  kl_rows: 2
DURING
keep_model: false
"""
)


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def written(during: str = "", **changes: str) -> str:
    text = BASE.replace("DURING", f"  during: {during}" if during else "")
    for old, new in changes.items():
        text = text.replace(old, new)
    Path("watched.yaml").write_text(text)
    return "watched.yaml"


def trained(out: str, during: str = "", **changes: str) -> tuple[dict[str, Any], Path]:
    file = written(during, **changes)
    (record,) = cltk.load(file, out).run()
    return record, next(path.parent for path in Path(out).glob("*/record.json"))


def test_a_watched_cell_has_the_weights_of_one_that_is_not_and_its_curve(capfd: Any) -> None:
    plain, _ = trained("plain")
    with_boards = {"logging_steps: 2}": "logging_steps: 2, report_to: [tensorboard]}"}
    watched, folder = trained("watched", "{every: 2, sample: 10}", **with_boards)
    for key in ("start_model", "tuned_model", "measurement"):
        assert watched["digests"][key] == plain["digests"][key]
    assert watched["digests"]["cell"] != plain["digests"]["cell"]
    note = watched["train"]["notes"]["watch"]
    assert [point["step"] for point in note["trace"]] == [0, 2, 4, 6]
    assert note["documents"] == {"toy": 10, "old_text": 10}
    assert set(note["final"]["verdicts"]) == {"toy", "old_text", "macro"}
    assert not (folder / "checkpoints").exists()
    board = scalars(folder / "curves")
    assert board["eval/forgetting_old_text"] == pytest.approx(
        [point["forgetting_old_text"] for point in note["trace"]], rel=1e-5
    )
    final = {row["task"]: row["forgetting"] for row in watched["retain"]["rows"] if row["metric"] in ("acc", "acc_norm", "nll")}
    assert board["eval/final_forgetting_old_text"] == pytest.approx([final["old_text"]], rel=1e-5)
    assert board["eval/final_learned_heldout"] == pytest.approx([-watched["learn"]["rows"][0]["forgetting"]], rel=1e-5)
    assert words(folder / "curves", "eval/final_verdict_macro") == watched["retain"]["macro"]["verdict"]
    assert main(["report", "watched", "--html", "report.html"]) == 0
    assert "forgetting: old_text" in Path("report.html").read_text()
    assert "forgetting: macro" in Path("report.html").read_text()


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, list[float]]:
    found = events(folder)
    return {tag: [one.value for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def words(folder: Path, tag: str) -> str:
    return events(folder).Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_the_rules_from_yaml() -> None:
    rules = "{every: 2, sample: null, retain: [old_text], stop_at: {old_text: 0}, keep_best: {old_text: 10}}"
    record, _ = trained("ruled", rules, **{"3.0e-3, max_steps: 6": "0.1, max_steps: 40"})
    note = record["train"]["notes"]
    assert list(note["watch"]["documents"]) == ["old_text"]
    assert "best_step" in note["watch"]["final"]
    low = [point["forgetting_old_text_low"] for point in note["watch"]["trace"][1:]]
    assert ("stopped" in note) == any(value > 0 for value in low)


def test_a_stage_is_paired_with_the_start_model(study: Path) -> None:
    stages = """\
stages:
  - {name: one, data: {train: {path: new.jsonl, prompt: question, completion: answer}, max_length: 64}}
  - {name: two, data: {train: {path: new.jsonl, prompt: question, completion: answer}, max_length: 64}}
"""
    text = BASE.replace("DURING", "  during: {every: 3, sample: null, retain: [old_text]}")
    head, tail = text.index("data:\n"), text.index("train: {learning")
    Path("watched.yaml").write_text(text[:head] + stages + text[tail:])
    (record,) = cltk.load("watched.yaml", "stream").run()
    notes = record["train"]["notes"]
    ends = [notes[name]["watch"]["trace"] for name in ("one", "two")]
    assert [point["step"] for point in ends[1]] == [0, 3, 6]
    assert ends[1][0]["forgetting_old_text"] == pytest.approx(ends[0][-1]["forgetting_old_text"], abs=1e-5)
    assert ends[1][0]["forgetting_old_text"] != 0


@pytest.mark.parametrize(
    ("during", "words"),
    [
        ("{evry: 2}", "unknown key; did you mean 'every'"),
        ("{every: 0}", "evals.during.every"),
        ("{stop_at: {macr: 0.02}}", "evals.during.stop_at: nothing that is watched is called 'macr'"),
        ("{stop_at: {macro: -1}}", "evals.during.stop_at.macro"),
        ("{stop_at: 0.02}", "evals.during.stop_at"),
        ("{retain: [other]}", "evals.during.retain: 'other' is not in evals.retain"),
        ("{keep_best: true, score: new}", "evals.during.score: nothing that is watched is called 'new'"),
    ],
)
def test_what_is_wrong_is_one_line(during: str, words: str, capfd: Any) -> None:
    assert main(["run", written(during), "--out", "bad"]) == 2
    said = capfd.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not Path("bad").exists()


def test_two_keepers_of_the_best_are_refused_before_weights(capfd: Any) -> None:
    stop = "mitigators: [early_stopping: {every: 2}]\nkeep_model"
    assert main(["run", written("{keep_best: true}", keep_model=stop), "--out", "bad"]) == 2
    assert "each end with weights of their own choice" in capfd.readouterr().err


class WandbCallback:
    """As far as transformers' own goes: it makes a run where there is none, and never ends one."""

    runs: list[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        self._initialized, self._wandb = True, SimpleNamespace(run=object(), finish=self.finish)
        self.runs.append([])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None) -> None:
        self.runs[-1].append(logs)

    def finish(self) -> None:
        self._wandb.run = None


class MLflowCallback:
    """Ends its run when training ends; takes numbers alone."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.tags: dict[str, str] = {}
        self._ml_flow = SimpleNamespace(set_tag=self.tags.__setitem__)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None) -> None:
        assert self.lines[-1:] != ["ended"]
        self.lines.append(logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.lines.append("ended")


def test_runs_are_open_until_the_last_numbers_and_end_then() -> None:
    board, flow = WandbCallback(), MLflowCallback()
    state = SimpleNamespace(is_world_process_zero=True, global_step=4)
    handler = SimpleNamespace(callbacks=[board, flow])
    trainer = SimpleNamespace(args=None, control=None, state=state, callback_handler=handler)
    loggers = Loggers(trainer)
    flow.on_train_end(None, state, None, model=None, optimizer="held by nobody")
    assert flow.lines == []
    loggers.trained(trainer)
    loggers.log({"eval_final_forgetting_a": 0.5, "eval_final_verdict_a": "forgets"})
    loggers.close()
    assert flow.lines == [{"eval_final_forgetting_a": 0.5}, "ended"]
    assert flow.tags == {"eval_final_verdict_a": "forgets"}
    assert board.runs == [[{"eval_final_forgetting_a": 0.5, "eval_final_verdict_a": "forgets"}]]
    assert board._wandb.run is None


def test_every_cell_has_a_name_in_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import cltk.run.train

    names: list[str] = []
    made = cltk.run.train.training_arguments

    def noted(*args: Any) -> Any:
        found = made(*args)
        names.append(found.run_name)
        return found

    monkeypatch.setattr(cltk.run.train, "training_arguments", noted)
    grid = "grid: {seed: [0, 1]}\nkeep_model"
    file = written(keep_model=grid, **{"max_steps: 6": "max_steps: 1"})
    records = cltk.load(file, "named").run()
    assert names == [record["cell"] for record in records]
    assert len(set(names)) == 2
    assert read_json(next(Path("named").glob("*/record.json")))
