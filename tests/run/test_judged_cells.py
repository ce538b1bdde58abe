"""`evals: {judge: ...}`: from YAML to record, tables and page; what is refused before weights are loaded, and never sent."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

import cltk
from cltk.cli import main
from cltk.errors import InputError, RunError
from cltk.run import judging
from tests.conftest import CHATML, TINY
from tests.judge_server import Server

KEY = "a-key-that-nobody-may-see"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def experiment(study: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """experiment(judge section, more) -> its YAML, of a tiny chat model."""
    from transformers import AutoTokenizer

    monkeypatch.chdir(study)
    monkeypatch.delenv("CLTK_JUDGE_KEY", raising=False)
    folder = (study / "tiny-llama").resolve()
    chat = study / "chat"
    chat.mkdir()
    for file in folder.iterdir():
        (chat / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(chat)
    rows = [{"question_id": i, "category": "x", "turns": [f"go {i}", "on"]} for i in range(3)]
    (study / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(judge: dict[str, Any], **more: Any) -> Path:
        data = yaml.safe_load(TINY.replace("tiny-llama", "chat"))
        data |= {"train": {"max_steps": 2, "learning_rate": 3e-3, "save_strategy": "no", "per_device_train_batch_size": 4}}
        data["evals"] = {"kl_rows": 0, "judge": {"questions": "q.jsonl", "model": "m", "max_new_tokens": 6, **judge}}
        data |= {"keep_model": False, "grid": {"mitigators": {"plain": [], "slow": [{"low_lr": {"factor": 0.5}}]}}} | more
        file = study / "judged.yaml"
        file.write_text(yaml.safe_dump(data))
        return file

    return make


def test_cells_are_judged_and_the_report_says_it(
    experiment: Any, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLTK_JUDGE_KEY", KEY)
    server.reply = lambda body: f"Grade: [[{len(body['messages'][-1]['content']) % 9 + 1}]]"
    file = experiment({"endpoint": server.url})
    records = cltk.load(file, "out").run()
    for record in records:
        assert record["judge"]["turns"] == 6
        assert [row["task"] for row in record["judge"]["rows"]] == ["q", "q turn 1", "q turn 2"]
        assert record["config"]["evals"]["judge"]["mode"] == "single"
    words = [call for call in server.calls if len(call["messages"]) == 1]
    assert len(words) == 2  # a cell asks for one word before it trains
    bodies = [json.dumps(call, sort_keys=True) for call in server.calls if len(call["messages"]) > 1]
    assert len(bodies) == len(set(bodies)) <= 18  # the start model's answers are judged once for both cells
    text = cltk.report("out", html="page.html", show=False)
    assert "What the judge says" in text
    assert "How it was judged" in Path("page.html").read_text()
    assert all(KEY.encode() not in one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    asked = len(server.calls)
    cltk.load(file, "out").run()  # records are there
    assert len(server.calls) == asked
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "turns": ["other"]}\n')
    assert len(cltk.load(file, "out").missing()) == 2  # other questions, other cells


def test_a_dry_run_checks_and_sends_nothing(
    experiment: Any, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = experiment({"endpoint": server.url, "mode": "pairwise"})
    assert main(["run", str(file), "--dry-run", "--out", "out"]) == 0
    assert not server.calls
    refused = [
        ({"endpoint": "nowhere"}, "no address"),
        ({"endpoint": server.url, "questions": "none.jsonl"}, "none.jsonl: no such file"),
        ({"endpoint": server.url, "max_new_tokens": 4096}, "positions"),
        ({"endpoint": server.url, "mode": "best"}, "mode"),
        ({"endpoint": server.url, "api_key": KEY}, "secret"),
        ({"endpoint": server.url, "key_env": "OTHER_KEY"}, "OTHER_KEY holds no key"),
        ({"endpoint": "https://judge.example/v1"}, "CLTK_JUDGE_KEY holds no key"),
    ]
    for judge, message in refused:
        assert main(["run", str(experiment_again(file, judge)), "--dry-run", "--out", "out"]) == 2, message
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in said
        assert KEY not in said
    monkeypatch.setenv("CLTK_JUDGE_KEY", KEY)  # a file from elsewhere may not name where a key goes
    away = experiment_again(file, {"endpoint": "https://judge.example/v1"})
    with pytest.raises(InputError, match="--trust"):
        cltk.load(away, "out").check()
    cltk.load(away, "out", trust=True).check()
    assert not server.calls


def experiment_again(file: Path, judge: dict[str, Any]) -> Path:
    data = yaml.safe_load(file.read_text())
    data["evals"]["judge"] = {"questions": "q.jsonl", "model": "m", "max_new_tokens": 6} | judge
    file.write_text(yaml.safe_dump(data))
    return file


def test_a_start_model_without_a_template_is_refused(experiment: Any, server: Server) -> None:
    file = experiment({"endpoint": server.url}, model={"pretrained": "tiny-llama"})
    with pytest.raises(InputError, match="no chat template"):
        cltk.load(file, "out").check()
    assert not server.calls


def test_an_endpoint_that_refuses_stops_before_training(experiment: Any, server: Server) -> None:
    from cltk.errors import RunError

    server.faults = [lambda h: bool(h.send_error(401, "no")) or True] * 9
    with pytest.raises(RunError, match="HTTP 401"):
        cltk.load(experiment({"endpoint": server.url}), "out").run()
    assert len(server.calls) == 2  # one for each cell
    assert not list(Path("out").rglob("scores.json"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_others_hear_of_a_long_judging_before_a_collective_gives_up(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL waits ten minutes and ends the processes."""
    heard: list[bool] = []

    def work() -> str:
        time.sleep(0.1)
        if fails:
            raise RunError("no reply")
        return "judged"

    monkeypatch.setattr(judging, "TOLD", 0.01)
    monkeypatch.setattr(judging, "ranks", lambda: (0, 2))
    monkeypatch.setattr(judging, "agreed", lambda done: heard.append(done) or done)
    monkeypatch.setattr(judging, "decided", lambda act: act())
    with pytest.raises(RunError, match="no reply") if fails else nullcontext():
        assert judging._by_one(work) == "judged"
    assert len(heard) > 3
    assert heard[-1] is True
    assert not any(heard[:-1])
