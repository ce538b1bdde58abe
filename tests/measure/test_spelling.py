"""lm-eval's words on cltk's command line mean what they mean to lm-eval, or are refused in one line.

What people met: tasks separated by spaces, commas or both, a folder that hides a task of its name (lm-evaluation-harness#2005),
a limit that is a fraction, seeds of which only one reaches the examples (#1044, #1591, #1906), options with underscores.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lm_eval._cli import HarnessCLI, utils

import cltk
from cltk.cli import main, parser
from cltk.cli.measuring import generation
from cltk.errors import InputError
from cltk.measure.evaluate import Suite, TextTask
from cltk.measure.prompting import SEEDS, seeds_of
from cltk.measure.tasks import files_of
from tests.conftest import sentences, write_jsonl

LISTS = hasattr(utils, "split_top_level")  # lm-eval before 0.4.13 reads no list in NAME=VALUE


@pytest.fixture(autouse=True)
def _in_folder(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))


def theirs(words: list[str]) -> Any:
    with mock.patch.object(sys, "argv", ["lm_eval", "run", "--model", "hf", *words]):
        return HarnessCLI().parse_args()


def ours(words: list[str], command: str = "measure") -> Any:
    return parser().parse_args([command, "base", "tuned", *words])


SAME = [
    ["--tasks", "a", "b"],
    ["--tasks", "a,b", "c", "--num_fewshot", "3"],
    ["-t", "mmlu_*,x", "--include_path", "tasks", "-f", "0"],
    ["--tasks", "a", "--tasks", "b,c"],
    ["-t", "./x.yaml", "-L", "0.25", "--batch_size", "auto:4"],
    ["-t", "a", "--limit=10", "--system_instruction", "Be brief.", "-b", "8"],
    ["-t", "a", "--apply_chat_template", "--fewshot_as_multiturn", "False", "--device", "cpu"],
    ["-t", "a", "--fewshot_as_multiturn=true", "--apply_chat_template", "--confirm_run_unsafe_code"],
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_the_same_words_are_the_same_settings(words: list[str]) -> None:
    mine, other = vars(ours(words)), vars(theirs(words))
    mine["chat_template"] = mine["chat_template"] != "none"  # of which model is a question that lm-eval has not
    for name, value in other.items():
        name = {"apply_chat_template": "chat_template"}.get(name, name)
        if name in mine and value is not None and name not in ("command", "func"):
            assert str(mine[name]) == str(int(value) if name == "limit" and value >= 1 else value), name
    assert mine["tasks"] == other["tasks"]


@pytest.mark.parametrize(
    "words",
    [["temperature=0.5", "top_p=0.9"], ["a=1,b=[1,2],c=x" if LISTS else "a=1,c=x"], ['{"until": ["x"], "max_gen_toks": 3}']],
)
def test_generation_settings_are_read_as_by_lm_eval(words: list[str]) -> None:
    assert generation(words) == theirs(["-t", "x", "--gen_kwargs", *words]).gen_kwargs


@pytest.mark.parametrize("text", ["7", "1,2,3,4", "1,2,3"])
def test_seeds_are_read_as_by_lm_eval(text: str) -> None:
    assert list(seeds_of(text)) == theirs(["-t", "x", "--seed", text]).seed
    assert seeds_of(None) == SEEDS == tuple(theirs(["-t", "x", "--seed", "0,1234,1234,1234"]).seed)


@pytest.mark.parametrize("given", ["1,2", "x", "1,None,2,3", "-1", [1, 2, 3, 4, 5], True, 1.5])
def test_seeds_that_are_none_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="seed: expected"):
        seeds_of(given)


def test_models_may_stand_behind_the_tasks() -> None:
    before = parser().parse_args(["measure", "--limit", "3", "--tasks", "a,b", "one", "two", "--seed", "4"])
    assert (before.base, before.tasks, before.seed) == ("one", ["a", "b"], "4")
    behind = parser().parse_args(["measure", "one", "two", "--tasks", "a", "b"])
    assert (behind.base, behind.tasks) == ("one", ["a", "b"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--num_fewshots", "3"], "did you mean --num-fewshot?"),
        (["--taks", "toy"], "did you mean --tasks?"),
        (["--use_cache", "x"], "--use_cache x: finished answers are kept"),
        (["--samples", "{}"], "--sample N draws documents"),
        (["--trust_remote_code"], "--model-args trust_remote_code=true"),
        (["--model", "hf"], "cltk measure BASE TUNED"),
        (["-v", "DEBUG"], "unrecognized arguments: DEBUG"),
        (["--limit", "many"], "invalid number value: 'many'"),
    ],
)  # fmt: skip
def test_a_typo_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["measure", "tiny-llama", "tiny-llama", *words])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert line in said
    assert said.count("\n") == 1


def test_models_that_are_missing_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["measure", "--tasks", "a", "b"])
    assert "the following arguments are required: tuned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed", "1,None,2,3"], "seed: expected a whole number"),
        (["--limit", "0"], "limit: expected"),
        (["--limit", "nan"], "limit: expected"),
        (["--device", "cuda:9"], "device: 'cuda:9' is not on this machine; what is: cpu"),
        (["--device", "gpu"], "device: 'gpu' is not on this machine"),
        (["--gen_kwargs", "x"], "--gen-kwargs: expected `key=value`" if LISTS else "--gen-kwargs: not enough values"),
        (["-t", "nowhere/*.yaml"], "no task file is there"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "tiny-llama", "tiny-llama", "-t", "toy", "--include_path", "tasks", *words]) == 2
    assert line in capsys.readouterr().err


def stock(name: str, **settings: Any) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        lm = HFLM(pretrained="tiny-llama", device="cpu", batch_size=4)
        manager = TaskManager(include_defaults=False, include_path="tasks")
        return simple_evaluate(lm, tasks=[name], bootstrap_iters=0, task_manager=manager, **settings)


@pytest.mark.parametrize("limit", [0.2, 0.26, 1.0, 3.7, 5])
def test_a_limit_takes_the_documents_that_lm_eval_takes(limit: float) -> None:
    suite = Suite("toy", include_path="tasks", limit=limit)
    samples = stock("toy", limit=limit)["samples"]["toy"]
    assert suite.sizes() == {"toy": len({row["doc_id"] for row in samples})}
    asked = [list(args) for args in suite._requests()["toy"]]
    assert asked == [list(args) for row in samples for args in row["arguments"]]
    from cltk.models import load_model

    scores = suite.evaluate(*load_model("tiny-llama"))
    assert scores.tasks["toy"].values["acc"] == [row["acc"] for row in samples]


def test_a_limit_takes_that_share_of_a_text() -> None:
    rows = [json.loads(line)["text"] for line in Path("old.jsonl").read_text().splitlines()]
    assert [row["text"] for row in TextTask.read("old", "old.jsonl", limit=0.05).rows] == rows[:: len(rows) // 6]


def test_the_seed_of_the_examples_is_lm_evals() -> None:
    pool = write_jsonl(Path("tasks/pool.jsonl"), [{"q": s, "choices": ["cat", "zebra"], "label": 0} for s in sentences(30, 5)])
    own = Path("tasks/toy.yaml").read_text().replace("task: toy", "task: shots")
    own = own.replace("{validation: ", f"{{train: {pool.resolve()}, validation: ")
    Path("tasks/shots.yaml").write_text(own + "training_split: train\nfewshot_split: train\nnum_fewshot: 2\n")
    found = {}
    for seed in (None, "5", "0,1234,1234,9"):
        names = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        samples = stock("shots", **dict(zip(names, seeds_of(seed), strict=True)))["samples"]["shots"]
        suite = Suite("shots", include_path="tasks", seed=seed)
        found[seed] = [list(args) for args in suite._requests()["shots"]]
        assert found[seed] == [list(args) for row in samples for args in row["arguments"]]
    assert found[None] != found["5"] != found["0,1234,1234,9"]
    with pytest.raises(InputError, match="seeds"):
        cltk.measure.forgetting.compare(*(_scored(seed) for seed in (None, 5)))


def _scored(seed: Any) -> Any:
    from cltk.models import load_model

    return Suite("shots", include_path="tasks", seed=seed).evaluate(*load_model("tiny-llama"))


def test_files_by_pattern_and_by_folder() -> None:
    Path("tasks/_template.yaml").write_text("output_type: multiple_choice\n")
    Path("tasks/other.yaml").write_text(Path("tasks/toy.yaml").read_text().replace("task: toy", "task: other"))
    both = ["tasks/other.yaml", "tasks/toy.yaml"]
    assert files_of("tasks/*.yaml") == both
    assert [Path(file) for file in files_of("./tasks")] == [Path(file) for file in both]
    assert files_of("tasks") == ["tasks"]  # a bare name is a task, also where a folder has it
    assert Suite(["tasks/*.yaml"]).sizes() == {"other": 12, "toy": 12}
    assert Suite("./tasks").sizes() == {"other": 12, "toy": 12}


MEASURE = ["measure", "tiny-llama", "tiny-llama", "-t", "toy", "--include_path", "tasks", "-L", "0.5", "--dtype", "float32"]


def test_json_on_the_standard_output_is_alone_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MEASURE, "--json", "-"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["settings"]["limit"] == 0.5
    assert "toy" in said.err  # the table
    assert main([*MEASURE, "--json", "out.json"]) == 0
    assert json.loads(Path("out.json").read_text())["rows"] == found["rows"]
    capsys.readouterr()
    assert main(["power", "-t", "toy", "--include_path", "tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n"] == 12


@pytest.mark.parametrize("command", [["methods", "ewc"], ["estimate", "tiny-llama"], ["assets", "list"]])
def test_json_is_spelled_the_same_everywhere(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for words in (["--json"], ["--json", "-"], ["--json=-"]):
        assert main([*command, *words]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert main([command[0], "--json", "found.json", *command[1:]]) == 0
    assert capsys.readouterr().out != json.dumps(printed[0])
    assert [json.loads(Path("found.json").read_text())] * 3 == printed


def test_output_path_has_the_files_that_lm_eval_writes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("stays")
    assert main([*MEASURE, "--output_path", "out", "--log_samples"]) == 0
    assert Path("out/mine.txt").read_text() == "stays"
    results = [json.loads(file.read_text()) for file in Path("out/tiny-llama").glob("results_*.json")]
    expected = stock("toy", limit=0.5)
    assert [one["results"]["toy"]["acc,none"] for one in results] == [expected["results"]["toy"]["acc,none"]] * 2
    for file in Path("out/tiny-llama").glob("samples_toy_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["doc_hash"] for row in rows] == [row["doc_hash"] for row in expected["samples"]["toy"]]
    assert main([*MEASURE, "-o", "plain"]) == 0
    assert not list(Path("plain").rglob("samples_*"))
    capsys.readouterr()
    for words, line in (
        (["--log_samples"], "--log-samples: name a folder with --output-path"),
        (["-o", "x.json"], "--output-path x.json: name a folder"),
        (["-o", "x", "--until", "0.1"], "--output-path: the looks of --until"),
    ):
        assert main([*MEASURE, *words]) == 2
        assert line in capsys.readouterr().err


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    before = [(logging.getLogger(name).level, len(logging.getLogger(name).handlers)) for name in ("cltk", "lm_eval")]
    assert main([*MEASURE, "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main(MEASURE) == 0
    assert "documents: 6/6" in capsys.readouterr().err
    assert main([*MEASURE, "--verbosity", "INFO"]) == 0
    assert "float32 on cpu" in capsys.readouterr().err
    assert before == [(logging.getLogger(name).level, len(logging.getLogger(name).handlers)) for name in ("cltk", "lm_eval")]
