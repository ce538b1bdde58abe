"""`cltk gate` as a pipeline calls it: files in, a line and an exit code out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from cltk.cli import main
from cltk.measure.forgetting import compare
from cltk.measure.scores import Scores, TaskScores
from cltk.run.records import write_json


def side(lost: int, gained: int, n: int, nll: float) -> dict[str, TaskScores]:
    right = n // 2
    acc = [0.0] * lost + [1.0] * (right - lost) + [1.0] * gained + [0.0] * (n - right - gained)
    hashes = [f"d{i}" for i in range(n)]
    quiz = TaskScores("quiz", {"acc": acc}, {"acc": True}, hashes, hashes)
    values = [2 + nll + 0.01 * (i % 7) for i in range(60)]
    return {"quiz": quiz, "text": TaskScores("text", {"nll": values}, {"nll": False}, hashes[:60], hashes[:60])}


def measured(lost: int = 0, gained: int = 0, n: int = 1000, nll: float = 0.0, name: str = "tuned") -> dict[str, Any]:
    """What `cltk measure --json` writes of a base and a tuned model."""
    result = compare(Scores("base", side(0, 0, n, 0.0)), Scores(name, side(lost, gained, n, nll)), draws=100)
    return {**result.to_json(), "settings": {"base": "base", "tuned": name}}


@pytest.fixture
def good(tmp_path: Path) -> str:
    write_json(tmp_path / "good.json", measured(3, 4))
    return str(tmp_path / "good.json")


@pytest.fixture
def bad(tmp_path: Path) -> str:
    write_json(tmp_path / "bad.json", measured(80, 5, name="worse"))
    return str(tmp_path / "bad.json")


@pytest.fixture
def short(tmp_path: Path) -> str:
    write_json(tmp_path / "short.json", measured(4, 2, n=100))
    return str(tmp_path / "short.json")


def test_exit_codes_and_lines(good: str, bad: str, short: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", good, "--budget", "acc=0.02"]) == 0
    assert main(["gate", bad, "--budget", "acc=0.02", "--budget", "nll=0.05"]) == 3
    assert main(["gate", short, "--budget", "acc=0.02"]) == 4
    assert main(["gate", short, "--budget", "acc=0.02", "--on-unknown", "pass"]) == 0
    assert main(["gate", bad, "--budget", "quiz=0.2", "--on-unknown", "pass"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    lines = out.out.splitlines()
    assert [line.split(":")[1].split(" in ")[0].strip() for line in lines] == [
        "within budget", "over budget", "cannot tell", "cannot tell", "within budget",
    ]  # fmt: skip
    assert "documents would decide" in lines[2]


def test_files(bad: str, short: str, tmp_path: Path) -> None:
    files = {name: tmp_path / "out" / name for name in ("gate.md", "gate.xml", "gate.json")}
    asked = ["--markdown", str(files["gate.md"]), "--junit", str(files["gate.xml"]), "--json", str(files["gate.json"])]
    assert main(["gate", bad, "--budget", "acc=0.02", "--budget", "nll=0.05", *asked]) == 3
    assert files["gate.md"].read_text().startswith("### Forgetting: over budget")
    suite = etree.parse(str(files["gate.xml"])).getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("worse", "2", "1")
    found = json.loads(files["gate.json"].read_text())
    assert (found["answer"], found["exit_code"], found["on_unknown"]) == ("over", 3, "fail")
    assert [one["answer"] for one in found["models"]["worse"]["checks"]] == ["over", "within"]


def test_runs_of_several_models_and_a_budget_file(
    good: str, bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "budget.yaml").write_text("acc: 0.02\nmacro: 0.03\n")
    call = ["gate", good, good, bad, "--base-model", "base", "--budget", str(tmp_path / "budget.yaml")]
    assert main(call) == 3
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tuned", "worse"]
    several = tmp_path / "several.json"  # what `cltk measure BASE A B --json` writes
    write_json(several, {"results": {"tuned": measured(3, 4), "worse": measured(80, 5, name="worse")}})
    assert main(["gate", str(several), "--budget", str(tmp_path / "budget.yaml")]) == 3
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["tuned", "worse"]


def test_compare_with_budgets_ends_as_the_gate(good: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", bad, "--budget", "acc=0.02"]) == 3
    shown = capsys.readouterr().out
    assert "Forgetting: Perf_pre - Perf_ft" in shown
    assert "worse: over budget" in shown
    assert main(["compare", bad]) == 0
    assert main(["compare", bad, "--gate"]) == 2
    assert "name at least one budget" in capsys.readouterr().err


def test_noise_of_runs_that_should_be_equal(bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repeats of one model differ, with one seed on one machine (lm-evaluation-harness#3357): no loss is shown beside that."""
    write_json(tmp_path / "seed.json", measured(90, 2, name="seed"))
    write_json(tmp_path / "again.json", {**measured(60, 0, name="again"), "settings": {"base": "x", "tuned": "again"}})
    call = ["gate", bad, "--budget", "quiz=0.02"]
    assert main(call) == 3
    one, two = str(tmp_path / "seed.json"), str(tmp_path / "again.json")
    assert main([*call, "--noise", one, one]) == 4
    assert "equal runs differ by" in capsys.readouterr().out
    assert main([*call, "--base-model", "base", "--repeats", two]) == 4
    write_json(tmp_path / "quiet.json", measured(3, 4, name="quiet"))
    assert main([*call, "--noise", str(tmp_path / "quiet.json"), str(tmp_path / "quiet.json")]) == 3


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "name at least one budget"),
        (["--budget", "acc=1"], "1 pp is 0.01"),
        (["--budget", "aca=0.1"], "nothing measured has this name"),
        (["--budget", "acc=x"], "is no number"),
        (["--budget", "none.yaml"], "none.yaml: no such file"),
        (["--budget", "acc=0.1", "--on-unknown", "maybe"], "invalid choice"),
    ],
)
def test_wrong_calls_are_one_line_and_2(good: str, extra: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["gate", good, *extra])
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_was_left_out_when_measured_is_not_passed_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(3, 4)
    found["left_out"] = {"gone": "its own code fails", "quiz/acc_norm": "that of document 3 is nan"}
    write_json(tmp_path / "found.json", found)
    file = str(tmp_path / "found.json")
    assert main(["gate", file, "--budget", "acc=0.02"]) == 4
    assert "gone could not be compared" in capsys.readouterr().out
    assert main(["gate", file, "--budget", "quiz=0.02"]) == 0
    assert main(["gate", file, "--budget", "acc_norm=0.02"]) == 4
