"""Logs that do not compare as they are: refused by name, read as declared, or paired on documents with --prompts differ.

What people met (EleutherAI/lm-evaluation-harness): a second run beside the first (#1918), several models below one path
(#3646), two filters a document (#1687), samples that hold no number (bypass, #2949), directions that nobody declares.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cltk.cli import main
from cltk.errors import InputError
from cltk.logs.comparing import compare, compare_all
from cltk.logs.reading import open_log, read
from tests.logs.conftest import N, edit, evaluated, written


def only(folder: Path, *tasks: str) -> None:
    """Keep these tasks of a folder."""
    for file in folder.glob("samples_*"):
        if not any(file.name.startswith(f"samples_{task}_20") for task in tasks):
            file.unlink()

    def shrink(data: dict[str, Any]) -> None:
        data["group_subtasks"] = {}
        for key in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
            data[key] = {task: one for task, one in data[key].items() if task in tasks}

    edit(folder, "results_*.json", shrink)


@pytest.fixture
def digits(runs: Any) -> tuple[Path, Path]:
    """Both folders with one task."""
    for folder in runs:
        only(folder, "digits")
    return runs


CHANGES: list[tuple[str, Any]] = [
    ("num_fewshot 0 and 5", lambda data: data["n-shot"].update(digits=5)),
    ("version Yaml and 2.0", lambda data: data["versions"].update(digits=2.0)),
    ("chat_template None and sha256 abc", lambda data: data.update(chat_template_sha="abc", chat_template="{{x}}")),
    (
        "system_instruction None and Be brief",
        lambda data: data.update(system_instruction="Be brief", system_instruction_sha="d"),
    ),
]


@pytest.mark.parametrize(("named", "change"), CHANGES, ids=[named for named, _ in CHANGES])
def test_other_settings_are_refused_by_name_or_said(
    digits: Any, named: str, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    same = compare(*digits)
    edit(digits[1], "results_*.json", change)
    edit(digits[0], "results_*.json", lambda data: data["versions"].update(digits="Yaml"))
    if "version" not in named:
        edit(digits[1], "results_*.json", lambda data: data["versions"].update(digits="Yaml"))
    assert main(["compare", *map(str, digits)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "--prompts differ" in error
    assert error.count("\n") == 1
    assert main(["compare", *map(str, digits), "--prompts", "differ"]) == 0
    assert named in " ".join(capsys.readouterr().out.split())
    assert compare(*digits, prompts="differ").rows == same.rows


def test_other_limits_share_their_documents(
    tiny: Any, tokenizer: Any, task_folder: Path, runs: Any, results: Any, tmp_path: Path
) -> None:
    short = written(evaluated(tiny(seed=1), tokenizer, task_folder, ["digits", "words"], limit=9), tmp_path / "short")
    for folder in runs:
        only(folder, "digits", "words")
    with pytest.raises(InputError, match=r"task digits: .*limit None and 9"):
        compare(runs[0], short)
    result = compare(runs[0], short, prompts="differ")
    rows = {(row.task, row.metric): row for row in result.rows}
    own = [sample["acc"] for sample in results["base"]["samples"]["digits"][:9]]
    assert (rows["digits", "acc"].n, rows["digits", "acc"].pre) == (9, sum(own) / 9)
    assert ("words", "perplexity") not in rows
    assert any("9 are in both, of 24 and 9" in note for note in result.notes)
    assert any("perplexity is left out" in note for note in result.notes)


def test_prompts_documents_and_right_answers(digits: Any) -> None:
    def asked(sample: dict[str, Any]) -> None:
        sample["prompt_hash"] = sample["prompt_hash"][::-1] if sample["doc_id"] < 3 else sample["prompt_hash"]

    edit(digits[1], "samples_*", asked)
    with pytest.raises(InputError, match="the prompts of 3 of 24 documents differ"):
        compare(*digits)
    result = compare(*digits, prompts="differ")
    assert any("prompts of 3 documents" in note for note in result.notes)
    assert any("it was edited" in note for note in result.notes)
    edit(digits[1], "samples_*", lambda one: one.update(doc_hash=f"x{one['doc_id']}") if one["doc_id"] in (1, 2) else None)
    with pytest.raises(InputError, match=r"2 documents are not in both runs \(24 and 24\)"):
        compare(*digits)
    assert compare(*digits, prompts="differ").rows[0].n == N - 2
    edit(digits[1], "samples_*", lambda one: one.update(target_hash="other") if one["doc_id"] == 5 else None)
    for prompts in ("same", "differ"):
        with pytest.raises(InputError, match="1 of 22 documents have other right answers"):
            compare(*digits, prompts=prompts)
    edit(digits[1], "samples_*", lambda one: one.update(doc_hash=f"x{one['doc_id']}"))
    with pytest.raises(InputError, match="share no document"):
        compare(*digits, prompts="differ")


def test_what_is_not_lm_evals_own_number_is_refused(digits: Any) -> None:
    edit(digits[1], "samples_*", lambda one: one.update(acc=1.0 - one["acc"]) if one["doc_id"] == 7 else None)
    with pytest.raises(
        InputError, match=r"task digits: .*acc of its documents is 0\.\d+, and 0\.\d+ in the results; run lm_eval"
    ):
        compare(*digits)
    (file,) = digits[0].glob("samples_*")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(InputError, match="20 of 24 documents are there"):
        read(digits[0])
    file.write_text(file.read_text()[:-40])
    with pytest.raises(InputError, match="cut or damaged"):
        read(digits[0])
    file.write_text("")
    with pytest.raises(InputError, match="holds no documents"):
        read(digits[0])


def test_a_cut_file_whose_mean_agrees_is_refused(digits: Any) -> None:
    edit(digits[0], "samples_*", lambda one: one.update(acc=1.0))
    edit(digits[0], "results_*.json", lambda data: data["results"]["digits"].update({"acc,none": 1.0}))
    (file,) = digits[0].glob("samples_*")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(InputError, match="20 of 24 documents are there"):
        read(digits[0])


def test_a_document_twice_is_two_runs(digits: Any) -> None:
    (file,) = digits[0].glob("samples_*")
    file.write_text(file.read_text() * 2)
    with pytest.raises(InputError, match=r"jsonl:25: document 0 stands there twice"):
        read(digits[0])


def test_results_without_samples_and_samples_without_results(runs: Any, tmp_path: Path) -> None:
    next(runs[1].glob("samples_digits_*")).unlink()
    result = compare(*runs)
    assert any("has no samples of it; run lm_eval again with --log_samples" in note for note in result.notes)
    assert "digits" in result.left_out
    for file in runs[1].glob("samples_*"):
        file.unlink()
    with pytest.raises(InputError, match="run lm_eval again with --log_samples"):
        compare(*runs)
    next(runs[0].glob("results_*")).unlink()
    with pytest.raises(InputError, match="the results of its run are not beside it"):
        read(runs[0])
    with pytest.raises(InputError, match="the results of its run are not beside it"):
        read(next(runs[0].glob("samples_words_*")))


def later(folder: Path, date: str = "2999-01-01T00-00-00.000000") -> None:
    """A copy of a folder's run, of another date."""
    for file in list(folder.iterdir()):
        stem, suffix = file.name.rsplit("_", 1)[0], file.suffix
        shutil.copy(file, folder / f"{stem}_{date}{suffix}")


def test_of_several_runs_the_newest_counts(digits: Any) -> None:
    old = read(digits[0])
    later(digits[0])
    edit(digits[0], "samples_*_2999*", lambda one: one.update(acc=1.0))
    edit(digits[0], "results_2999*", lambda data: data["results"]["digits"].update({"acc,none": 1.0}))
    new = read(digits[0])
    assert set(new.scores.tasks["digits"].values["acc"]) == {1.0} != set(old.scores.tasks["digits"].values["acc"])
    assert any("the newest run is read, results_2999" in note for note in new.notes)
    first = min(digits[0].glob("results_*"))
    assert read(first).scores == old.scores
    edit(digits[0], "results_2999*", lambda data: data["n-shot"].update(digits=5))
    with pytest.raises(InputError, match=r"digits twice \(n-shot 5 and 0\): .*results_2999.* and .*name one file"):
        read(digits[0])


def test_tasks_of_several_dates_are_one_model(runs: Any) -> None:
    whole = read(runs[0]).scores
    later(runs[0])
    for file in runs[0].glob("*_2999*"):
        if "samples_words" not in file.name and "results" not in file.name:
            file.unlink()
    keys = ("results", "configs", "group_subtasks")
    edit(
        runs[0],
        "results_2999*",
        lambda data: data.update({k: {n: v for n, v in data[k].items() if n == "words"} for k in keys}),
    )
    found = read(runs[0]).scores
    assert next(iter(found.tasks)) == "words"
    assert found.tasks == whole.tasks


def test_several_models_are_named(results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, one in (("org/base", "base"), ("org/tuned", "tuned"), ("tuned,revision=step1", "tuned")):
        written(results[one], tmp_path / "out", model=name)
    edit(
        tmp_path / "out" / "tuned",
        "results_*",
        lambda data: data["config"].update(model_args="pretrained=tuned,revision=step1"),
    )
    assert open_log(tmp_path / "out").models == ["org/base", "org/tuned", "tuned@step1"]
    assert main(["compare", str(tmp_path / "out")]) == 2
    assert "holds 3 models (org/base, org/tuned, tuned@step1); name one of them" in capsys.readouterr().err
    with pytest.raises(InputError, match="none of them is called so"):
        read(tmp_path / "out", "nobody")
    found = compare_all(tmp_path / "out", [tmp_path / "out"], base_model="base")
    assert list(found) == ["org/tuned", "tuned@step1"]
    assert found["org/tuned"].rows == found["tuned@step1"].rows
    assert compare(tmp_path / "out", tmp_path / "out", base_model="base", tuned_model="tuned").rows == found["org/tuned"].rows
    assert main(["compare", str(tmp_path / "out"), "--base-model", "base"]) == 0
    assert "Holm over 2 models" in capsys.readouterr().out
    assert compare(tmp_path / "out" / "org__base", tmp_path / "out" / "org__base").macro.forgetting == 0


def test_a_metric_without_a_direction_is_declared_or_left_out(digits: Any) -> None:
    for folder in digits:
        edit(folder, "samples_*", lambda one: one.update(own=one["doc_id"] / N + one["acc"], metrics=["acc", "own"]))
        edit(folder, "results_*", lambda data: data["results"]["digits"].update(
            {"own,none": 23 / 48 + data["results"]["digits"]["acc,none"], "own_stderr,none": "N/A"}
        ))  # fmt: skip
        edit(folder, "results_*", lambda data: data["higher_is_better"]["digits"].update(own=None))
    result = compare(*digits)
    assert "own" not in {row.metric for row in result.rows}
    assert any("own is left out: whether higher is better is not declared" in note for note in result.notes)
    up, down = (
        next(row for row in compare(*digits, directions={"own": better}).rows if row.metric == "own")
        for better in (True, False)
    )
    assert up.forgetting == -down.forgetting != 0
    assert main(["compare", *map(str, digits), "--lower-is-better", "own"]) == 0


@pytest.mark.parametrize("value", [math.nan, None, "oops", math.inf])
def test_values_that_are_no_numbers_are_named(runs: Any, value: Any) -> None:
    for folder in runs:
        only(folder, "toy")
    edit(runs[0], "samples_*", lambda one: one.update(acc=value) if one["doc_id"] == 4 else None)
    edit(runs[0], "results_*", lambda data: data["results"]["toy"].update({"acc,none": value}))
    result = compare(*runs)
    assert {row.metric for row in result.rows} == {"acc_norm", "logprob", "margin", "margin_norm"}
    assert any(f"acc is left out: that of document 4 is {value}" in note for note in result.notes)


def test_output_only_runs_have_no_number(tiny: Any, tokenizer: Any, task_folder: Path, tmp_path: Path) -> None:
    found = evaluated(tiny(seed=1), tokenizer, task_folder, ["written"], predict_only=True)
    folder = written(found, tmp_path / "bypass")
    with pytest.raises(InputError, match=r"bypass.*: it is no number"):
        compare(folder, folder)


def test_tasks_and_metrics_of_one_side_are_named(runs: Any) -> None:
    only(runs[1], "toy", "digits")
    edit(runs[1], "samples_toy*", lambda one: (one.pop("acc_norm"), one.update(metrics=["acc"])))
    result = compare(*runs, members=True)
    assert {row.task for row in result.rows} == {"toy", "digits"}
    assert result.left_out["words"] == "task words: only tiny has it"
    assert any("toy: acc_norm is left out: only the base has it" in note for note in result.notes)
    only(runs[0], "words")
    with pytest.raises(InputError, match="no task in common"):
        compare(*runs)


def test_sides_are_as_before(runs: Any) -> None:
    """A base is compared with several: nothing of one comparison is left in the next."""
    base, tuned = read(runs[0]), read(runs[1])
    whole = compare(base, tuned)
    only(runs[1], "digits")
    compare(base, read(runs[1]), prompts="differ")
    assert compare(base, tuned) == whole
    assert base == read(runs[0]) or base.scores == read(runs[0]).scores


def test_groups_weigh_as_lm_evals_own_number_says(runs: Any) -> None:
    """By documents or all alike, whichever gives its number; a group whose number is neither has rows of its tasks."""
    edit(runs[0], "results_*", lambda data: data["results"]["both"].update({"acc,none": 0.123}))
    edit(runs[0], "results_*", lambda data: data["groups"]["both"].update({"acc,none": 0.123}))
    side = read(runs[0])
    assert {"toy", "labels"} <= side.scores.tasks.keys()
    assert "both" not in side.scores.tasks
    assert any("both: lm-eval's own acc,none, 0.123, is no mean of its tasks" in note for note in side.notes)


def test_damaged_results_are_one_line(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = next(runs[0].glob("results_*"))
    file.write_text(file.read_text()[:50])
    assert main(["compare", *map(str, runs)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    file.write_text(json.dumps({"results": {}, "configs": {}}))
    assert main(["compare", *map(str, runs)]) == 2
