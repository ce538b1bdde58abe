"""Judges: what is asked, what a reply is worth, how an endpoint is asked again, and the numbers against scipy and by hand.

What people met: the first number of a reply taken for its grade, and a neutral one where there is none
(OpenAgentHQ/openagent-eval#74); grades in brackets that leave the scale (IBM/unitxt#1960); one order only, which favours a
place (openvang/vanguarstew#87); 12.9 % of GPT-4's verdicts that flip with the order (lm-sys/FastChat#3911); verdicts that
change from run to run (weitzer-org/sound-profile-builder#68); thoughts without their opening tag, which the template holds
(vllm#13125), or with an end inside (llama.cpp#27661).
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cltk.cli import main
from cltk.data import assets
from cltk.errors import InputError, RunError
from cltk.measure import judge_client, judge_models, judge_prompts, judging
from cltk.measure.journal import Journal
from cltk.measure.judge_client import Client
from cltk.measure.judge_questions import Question, answers, read_questions
from cltk.measure.judging import Judges
from cltk.report.judging import tables
from tests import forks
from tests.conftest import CHATML
from tests.judge_server import Server, send

KEY = "a-key-that-nobody-may-see"
QUESTIONS = [
    Question(str(i), "math" if i % 2 else "writing", (f"first {i}", f"second {i}"), (f"right {i}", "r2") if i % 2 else ())
    for i in range(6)
]
BASE = [[f"base {i} one", f"base {i} two"] for i in range(6)]
TUNED = [[f"tuned {i} one", f"tuned {i} two"] for i in range(6)]


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def client(server: Server, **settings: Any) -> Client:
    return Client(server.url, **{"pause": 0.001, "timeout": 5.0, **settings})


def shown(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def run(server: Server, tmp_path: Path, tuned: Any = TUNED, **settings: Any) -> Any:
    judges = Judges(client(server), **{"models": ("m",), **settings})
    return judge_models.judge_answers(BASE, [tuned], QUESTIONS, judges, tmp_path, "qs")[0]


# --- what a reply is worth


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Good. Grade: [[8]]", 8.0),
        ("[[7.5]]", 7.5),
        ("[[ 10 ]]", 10.0),
        ("[[9/10]]", 9.0),
        ("It could be [[3]] but no: [[9]]", None),  # which?
        ("[[8]] ... Grade: [[8]]", 8.0),
        ("<think>maybe [[3]]</think>Grade: [[6]]", 6.0),
        ("<think>[[3]] and then cut", None),
        ("draft [[3]] then cut </think> The answer is fi", None),  # whose template had the beginning
        ("hmm [[3]] maybe</think>Good. Grade: [[8]]", 8.0),
        ("The answer leaves a stray <think> tag. Grade: [[4]]", 4.0),
        (f"A draft: [[3]], but{judge_prompts.CUT}", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[100]]", None),
        ("[[-5]]", None),
        ("Grade: 8", None),
        ("There are 5 reasons for a 9.", None),
        ("[8]", None),
        ("[[N]]", None),
        ("", None),
    ],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert judge_prompts.rating(reply) == grade


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is better: [[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "C"), ("[[A]] or [[B]]", None), ("A", None), ("[[D]]", None),
        ("[[a]]", None), ("<think>[[B]]</think>[[A]]", "A"), ("", None),
    ],
)  # fmt: skip
def test_choices(reply: str, verdict: str | None) -> None:
    assert judge_prompts.winner(reply) == verdict


def test_prompts_show_the_conversation_up_to_the_turn_and_the_reference_of_those_that_have_one() -> None:
    one = judge_prompts.graded(QUESTIONS[1], BASE[1], 0)[1]["content"]
    assert "first 1" in one
    assert "base 1 one" in one
    assert "right 1" in one
    assert "second 1" not in one
    assert "base 1 two" not in one
    two = judge_prompts.compared(QUESTIONS[0], BASE[0], TUNED[0], 1)[1]["content"]
    assert all(text in two for text in ("first 0", "second 0", "base 0 one", "base 0 two", "tuned 0 two"))
    assert two.index("base 0 two") < two.index("tuned 0 one")
    assert "right" not in two


# --- the endpoint


@pytest.mark.parametrize(
    ("message", "reason", "key", "text"),
    [
        ({"content": [{"type": "text", "text": "Grade: "}, {"type": "text", "text": "[[8]]"}]}, "stop", "", "Grade: [[8]]"),
        ({"content": "draft [[3]]"}, "length", "", f"draft [[3]]{judge_prompts.CUT}"),
        ({"content": "Grade: [[10]]"}, "stop", "1", "Grade: [[10]]"),  # local servers are given such keys
        ({"content": "half \ud83d of a pair"}, "stop", "", "half ? of a pair"),  # could not be written
    ],
)
def test_replies_as_servers_give_them(
    message: Any, reason: str, key: str, text: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLTK_JUDGE_KEY", key)
    server.faults = [lambda h: send(h, 200, {"choices": [{"message": message, "finish_reason": reason}]})]
    one = client(server)
    assert one.ask(one.body("m", [{"role": "user", "content": "x"}])) == text


def test_faults_are_asked_again(server: Server) -> None:
    server.faults = [
        lambda h: send(h, 429, {"error": "slow down"}, Retry_After="0"),
        lambda h: send(h, 500, "oops"),
        lambda h: send(h, 503, "busy"),
        lambda h: send(h, 200, "<html>not JSON</html>"),
        lambda h: send(h, 200, {"no": "choices"}),
        lambda h: bool(h.connection.close()) or True,  # the connection is lost
    ]
    assert client(server).ask({"model": "m", "messages": []}) == "Grade: [[7]]"
    assert len(server.calls) == 7


def test_a_slow_reply_is_given_up_and_asked_again(server: Server) -> None:
    server.faults = [lambda h: bool(time.sleep(1.0))]
    begin = time.monotonic()
    assert client(server, timeout=0.2).ask({"model": "m", "messages": []}) == "Grade: [[7]]"
    assert len(server.calls) == 2
    assert time.monotonic() - begin < 0.9


@pytest.mark.parametrize("value", ["0.4", "date"])
def test_retry_after_is_waited_for(server: Server, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Client, "_hold", lambda self, seconds: waits.append(seconds))
    when = "Wed, 01 Jan 2200 00:00:00 GMT" if value == "date" else value
    server.faults = [lambda h: send(h, 429, "{}", Retry_After=when)]
    client(server).ask({"model": "m", "messages": []})
    assert waits == [judge_client.WAIT if value == "date" else 0.4]


@pytest.mark.parametrize(
    ("code", "text"),
    [(401, "bad key " + KEY), (404, "no such model"), (400, "max_tokens"), (302, ""), (429, "insufficient_quota")],
)
def test_what_no_patience_mends_stops_at_once_in_one_line_without_the_key(
    server: Server, code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLTK_JUDGE_KEY", KEY)
    server.faults = [lambda h: send(h, code, text, Location="http://127.0.0.1:9/stolen")] * 9
    with pytest.raises(RunError, match=f"HTTP {code}") as found:
        client(server).ask({"model": "m", "messages": []})
    assert len(server.calls) == 1
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in str(found.value)
    assert "\n" not in str(found.value)


def test_an_endpoint_that_stays_down_is_one_line(server: Server) -> None:
    server.faults = [lambda h: send(h, 500, "down")] * 9
    with pytest.raises(RunError, match=r"no reply in 3 tries \(HTTP 500: down\); run the same command again"):
        client(server, retries=2).ask({"model": "m", "messages": []})
    with pytest.raises(RunError, match=r"ConnectionRefusedError|URLError"):
        Client("http://127.0.0.1:9/v1", retries=1, pause=0.001).ask({})


def test_requests_keep_to_the_rate_and_run_side_by_side(server: Server, tmp_path: Path) -> None:
    judges = Judges(client(server, rate=3000, concurrency=8), ("m",))
    judging.ask(judges, judging.items(judges, QUESTIONS, BASE, TUNED), Journal(tmp_path / "j"))
    assert len(server.times) == 24
    assert max(server.times) - min(server.times) >= 0.9 * 23 * 60 / 3000
    server.times.clear()
    server.reply = lambda body: time.sleep(0.2) or "[[5]]"
    judges = Judges(client(server, concurrency=12), ("other",))
    begin = time.monotonic()
    judging.ask(judges, judging.items(judges, QUESTIONS, BASE, TUNED), Journal(tmp_path / "k"))
    assert time.monotonic() - begin < 24 * 0.2 / 2


@pytest.mark.parametrize(
    ("endpoint", "environment", "settings", "message"),
    [
        ("localhost:8000", {}, {}, "no address"),
        ("ftp://x/v1", {}, {}, "no address"),
        ("https://user:pass@host/v1", {}, {}, "does not belong in an address"),
        ("https://host/v1?api_key=abcdefgh", {}, {}, "does not belong in an address"),
        ("https://judge.example/v1", {}, {}, "CLTK_JUDGE_KEY holds no key"),
        ("http://127.0.0.1/v1", {}, {"key_env": "MY_KEY"}, "MY_KEY holds no key"),
        ("http://judge.example/v1", {"CLTK_JUDGE_KEY": KEY}, {}, "in the clear"),
        ("http://127.0.0.1/v1", {"CLTK_JUDGE_KEY": "two\nlines"}, {}, "no plain text"),
        ("http://127.0.0.1/v1", {}, {"concurrency": 0}, "concurrency"),
        ("http://127.0.0.1/v1", {}, {"rate": 0}, "rate"),
    ],
)
def test_a_wrong_endpoint_is_refused_before_anything_is_sent(
    endpoint: str, environment: dict[str, str], settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLTK_JUDGE_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as found:
        Client(endpoint, **settings)
    assert KEY not in str(found.value)
    assert "pass@" not in str(found.value)


# --- judgements are kept


def test_every_judgement_is_kept_and_nothing_is_asked_twice(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: False] * 10 + [lambda h: send(h, 400, "stop")] * 40
    with pytest.raises(RunError, match="stop"):
        run(server, tmp_path)
    kept = len(Journal(tmp_path / judge_models.JUDGEMENTS))
    assert kept == 10
    server.faults, asked = [], len(server.calls)
    first = run(server, tmp_path)
    assert len(server.calls) - asked == 24 - kept
    asked = len(server.calls)
    assert run(server, tmp_path).to_json() == first.to_json()
    assert len(server.calls) == asked
    rows = [json.loads(line) for line in (tmp_path / judge_models.WRITTEN).read_text().splitlines()]
    assert len(rows) == 24
    assert {row["verdict"] for row in rows} == {7.0}
    assert rows[0]["prompt"] == judge_prompts.graded(QUESTIONS[0], BASE[0], 0)
    run(server, tmp_path, models=("other",))  # another judge is asked anew
    assert len(server.calls) == asked + 24


def test_the_same_answer_is_judged_once(server: Server, tmp_path: Path) -> None:
    result = run(server, tmp_path, tuned=BASE)
    assert len(server.calls) == 12
    assert [row.forgetting for row in result.rows] == [0, 0, 0]


# --- the numbers


def grade(body: dict[str, Any]) -> str:
    """By question, turn and model; of the tuned model lower."""
    text = shown(body)
    i = int(text.split("User, message 1: first ")[1][0])
    turn, tuned = "second" in text, "tuned" in text
    return f"Grade: [[{8 - tuned * (1 + i % 3) - turn}]]"


def test_grades_are_paired_by_question(server: Server, tmp_path: Path) -> None:
    server.reply = grade
    result = run(server, tmp_path)
    whole, one, two = result.rows
    d = np.array([1 + i % 3 for i in range(6)], dtype=float)
    assert (whole.task, one.task, two.task) == ("qs", "qs turn 1", "qs turn 2")
    assert (whole.n, whole.clusters, one.n) == (12, 6, 6)
    assert whole.forgetting == pytest.approx(d.mean())
    assert whole.pre == pytest.approx(7.5)
    se = d.std(ddof=1) / np.sqrt(6)  # both turns of a question lose the same: worth six questions, not twelve
    assert whole.se == pytest.approx(se)
    low, high = stats.t.interval(0.95, 5, d.mean(), se)
    assert whole.ci[0] == pytest.approx(low, abs=0.05)  # corrected for skew
    assert whole.ci[1] == pytest.approx(high, abs=0.05)
    assert whole.metric == "judge_rating"
    assert result.categories["math"]["base"] == pytest.approx(7.5)
    assert result.outcomes == {"lost": 12}
    assert not result.notes


def test_nonsense_is_no_verdict_and_in_no_number(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: (
        "I like 10 of them." if "tuned 2 one" in shown(body) and "second" not in shown(body) else grade(body)
    )
    result = run(server, tmp_path)
    assert result.unjudged == ["2/1"]
    assert result.readings == {"m#1": {"asked": 12, "no verdict": 1}}
    assert (result.rows[0].n, result.rows[1].n, result.rows[2].n) == (11, 5, 6)
    assert result.rows[1].pre == pytest.approx(8.0)
    assert "1 of 12 turns have no verdict" in result.notes[0]


@pytest.mark.parametrize("reply", ["lorem ipsum", "", None, "[[42]]"])
@pytest.mark.parametrize("mode", ["single", "pairwise"])
def test_a_judge_of_nonsense_gives_no_number_at_all(server: Server, tmp_path: Path, reply: Any, mode: str) -> None:
    server.reply = lambda body: reply
    result = run(server, tmp_path, mode=mode)
    assert result.rows == []
    assert len(result.unjudged) == 12
    assert result.readings["m#1"] == {"asked": 12, "no verdict": 12}
    json.dumps(result.to_json(), allow_nan=False)
    assert all(table.markdown() for table in tables({"x": result.to_json()}))


def test_a_win_holds_in_both_orders_and_the_place_is_reported(server: Server, tmp_path: Path) -> None:
    """Questions 0 and 1: the tuned model wins; 2: loses; 3: a tie; 4 and 5: whoever stands first."""

    def reply(body: dict[str, Any]) -> str:
        text = shown(body)
        i, base_first = int(text.split("User, message 1: first ")[1][0]), text.index("base") < text.index("tuned")
        wanted = {0: "BA", 1: "BA", 2: "AB", 3: "CC"}.get(i, "AA")
        return f"[[{wanted[not base_first]}]]"

    server.reply = reply
    result = run(server, tmp_path, mode="pairwise")
    assert len(server.calls) == 24
    assert result.outcomes == {"won": 4, "lost": 2, "tied": 6}
    assert result.rows[0].metric == "judge_wins"
    assert result.rows[0].pre == 0.5
    assert result.rows[0].post == pytest.approx((4 + 6 / 2) / 12)
    assert result.rows[0].forgetting == pytest.approx(0.5 - 7 / 12)
    place = result.position
    assert (place["first"], place["second"], place["ties"]) == (14, 6, 4)
    assert place["p"] == pytest.approx(stats.binomtest(14, 20).pvalue)
    assert (place["pairs"], place["inconsistent"]) == (12, 4)


def test_judges_and_repeats_are_compared_on_the_same_answers(server: Server, tmp_path: Path) -> None:
    """Judge "b" takes two points from the tuned model that "a" does not take, in the first three questions."""

    def reply(body: dict[str, Any]) -> str:
        strict = body["model"] == "b" and "tuned" in shown(body) and int(shown(body).split("message 1: first ")[1][0]) < 3
        return f"[[{8 - 2 * strict}]]"

    server.reply = reply
    result = run(server, tmp_path, models=("a", "b"), repeats=2)
    assert len(server.calls) == 4 * 24
    assert len(result.agreement) == 6
    found = {(one["one"], one["other"]): one for one in result.agreement}
    assert found["a#1", "a#2"]["same outcome"] == 1.0
    assert found["a#1", "a#2"]["noise"] == 0.0
    other = found["a#1", "b#1"]
    d = np.array([-2.0, -2, -2, 0, 0, 0])
    assert (other["n"], other["same outcome"], other["mean difference"]) == (12, 0.5, 0.5)
    assert other["noise"] == pytest.approx(d.mean())
    half = stats.t.ppf(0.975, 5) * d.std(ddof=1) / np.sqrt(6)
    assert other["noise_ci"] == pytest.approx([d.mean() - half, d.mean() + half])
    assert result.rows[0].forgetting == pytest.approx(0.5)  # the mean over four readings
    assert any(table.title == "How far judges agree" for table in tables({"x": result.to_json()}))


def test_judged_readings_without_a_verdict_leave_the_others(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: "?" if body["model"] == "b" else grade(body)
    result = run(server, tmp_path, models=("a", "b"))
    assert result.rows[0].n == 12
    assert result.readings["b#1"]["no verdict"] == 12
    assert result.agreement == [{"one": "a#1", "other": "b#1", "n": 0}]
    assert "12 turns have no verdict in some of their readings" in result.notes[0]


# --- questions and answers


def test_judgements_of_other_models_and_modes_stay(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: "[[7]]" if "from 1 (useless)" in shown(body) else "[[A]]"
    judges = Judges(client(server), ("m",))
    for who, mode in (("a", "single"), ("b", "single"), ("b", "pairwise"), ("a", "single")):
        judges = Judges(client(server), ("m",), mode)
        judge_models.judge_answers(BASE, [TUNED], QUESTIONS, judges, tmp_path, "qs", called=[who])
    rows = [json.loads(line) for line in (tmp_path / judge_models.WRITTEN).read_text().splitlines()]
    count = {
        (who, side): sum((row["tuned"], row["side"]) == (who, side) for row in rows) for who in "ab" for side in ("base", "AB")
    }
    assert count == {("a", "base"): 12, ("b", "base"): 12, ("a", "AB"): 0, ("b", "AB"): 12}


def test_conversations_that_do_not_fit(tiny: Any, chat: Any) -> None:
    """lm-eval cuts them from the left: the question itself, which is refused, or what was said before, which is noted."""
    model = tiny(max_position_embeddings=128)
    question = Question("q7", "", ("the cat sat", "and the dog?"))
    notes: list[str] = []
    answers(model, chat, [question], max_new_tokens=60, notes=notes)
    assert notes == [
        "1 conversations up to turn 2 do not fit into 128 positions with 60 new tokens: cut from the left; lower max_new_tokens"
    ]
    with pytest.raises(InputError, match=r"judge: 1 questions \(first: q7\) do not fit into 128 positions with 120 new tokens"):
        answers(model, chat, [question], max_new_tokens=120)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "turns": "one"}, "row 1: `turns` must be a list"),
        ({"question_id": 1, "turns": []}, "row 1: `turns` must be a list"),
        ({"question_id": 1, "turns": ["a", " "]}, "row 1: `turns` must be a list"),
        ({"turns": ["a"]}, "`question_id`"),
        ({"question_id": 1, "turns": ["a", "b"], "reference": ["x"]}, r"as many texts as there are turns \(2\)"),
    ],
)
def test_bad_questions_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_questions(file)


def test_questions_are_read_and_twins_refused(tmp_path: Path) -> None:
    ours = read_questions("cltk:prompts/two_turns.jsonl")
    assert len(ours) == 12
    assert all(len(question.turns) == 2 for question in ours)
    assert len(read_questions("cltk:prompts/two_turns.jsonl", 5)) == 5
    file = tmp_path / "q.jsonl"
    file.write_text('{"question_id": 1, "turns": ["a"]}\n' * 2)
    with pytest.raises(InputError, match="row 2: question_id '1' stands twice"):
        read_questions(file)


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Any:
    import copy

    found = copy.deepcopy(tokenizer)
    found.chat_template = CHATML
    return found


@pytest.fixture(scope="module")
def chats(tiny: Any, chat: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tiny chat models in folders."""
    folder = tmp_path_factory.mktemp("chats")
    for seed, name in enumerate(("base", "tuned")):
        tiny(seed=seed, max_position_embeddings=512, initializer_range=0.3).save_pretrained(folder / name)
        chat.save_pretrained(folder / name)
    return folder / "base", folder / "tuned"


def test_answers_are_the_models_own_turn_by_turn(tiny: Any, chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against transformers' generate, one conversation at a time, float32."""
    import torch

    model = tiny(max_position_embeddings=512, initializer_range=0.3)
    book = Journal(tmp_path / "a")
    found = answers(model, chat, QUESTIONS[:3], journal=book, max_new_tokens=6)
    for question, texts in zip(QUESTIONS, found, strict=False):
        talk: list[dict[str, str]] = []
        for said, text in zip(question.turns, texts, strict=True):
            talk.append({"role": "user", "content": said})
            prompt = chat.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            ids = chat(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=0)[0, ids.shape[1] :]
            assert text == chat.decode(new, skip_special_tokens=True).strip()
            talk.append({"role": "assistant", "content": text})
    assert len(book) == 6
    monkeypatch.setattr("cltk.measure.generation.Decoder", None)  # from the journal alone
    assert answers(model, chat, QUESTIONS[:3], journal=Journal(tmp_path / "a"), max_new_tokens=6) == found


# --- the command


def command(chats: tuple[Path, Path], server: Server, out: Path, *more: str) -> int:
    return main([
        "judge", *map(str, chats), "--questions", "cltk:prompts/two_turns.jsonl", "--limit", "3", "--endpoint", server.url,
        "--model", "m", "--max-new-tokens", "8", "--dtype", "float32", "--out", str(out), *more,
    ])  # fmt: skip


def test_the_command_judges_and_never_writes_the_key(
    chats: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLTK_JUDGE_KEY", KEY)
    server.reply = lambda body: f"Grade: [[{len(shown(body)) % 10 + 1}]] {KEY}"  # a judge that repeats what it was given
    assert command(chats, server, tmp_path / "out", "--json", str(tmp_path / "r.json")) == 0
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert len(server.calls) <= 13
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["turns"] == 6
    assert [row["task"] for row in result["rows"]] == ["two_turns", "two_turns turn 1", "two_turns turn 2"]
    asked = len(server.calls)
    assert command(chats, server, tmp_path / "out") == 0
    assert len(server.calls) == asked + 1  # the word that is asked first
    said = capsys.readouterr()
    assert "What the judge says" in said.out
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(KEY.encode() not in file.read_bytes() for file in written), written
    assert KEY not in said.out + said.err


def test_a_dry_run_sends_nothing(chats: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(chats, server, tmp_path / "out", "--dry-run", "--mode", "pairwise") == 0
    assert "12 judgements at most would be asked of m" in capsys.readouterr().out
    assert not server.calls
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--questions", "none.jsonl"], "none.jsonl: no such file"),
        (["--max-new-tokens", "512"], "the model has 512 positions"),
        (["--key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE holds no key"),
        (["--repeats", "0"], "repeats"),
        (["--judge-args", "api_key=abcdef"], "secret"),
    ],
)
def test_the_command_refuses_in_one_line(
    more: list[str], message: str, chats: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(chats, server, tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not server.calls


def test_a_model_without_a_template_is_refused(
    tiny: Any, tokenizer: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny().save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    assert command((tmp_path / "plain", tmp_path / "plain"), server, tmp_path / "out") == 2
    assert "no chat template" in capsys.readouterr().err
    assert not server.calls


def test_nonsense_ends_the_command_with_1_and_counts(
    chats: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body: "what?"
    assert command(chats, server, tmp_path / "out", "--json", str(tmp_path / "r.json")) == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["rows"], len(result["unjudged"])) == ([], 6)
    assert "6 of 6 turns have no verdict" in capsys.readouterr().out


KILLED = """
import sys
from pathlib import Path
from cltk.measure import judge_models
from cltk.measure.judge_client import Client
from cltk.measure.judge_questions import Question
from cltk.measure.judging import Judges

questions = [Question(str(i), "", (f"first {i}", f"second {i}")) for i in range(6)]
base, tuned = ([[f"{who} {i} one", f"{who} {i} two"] for i in range(6)] for who in ("base", "tuned"))
judges = Judges(Client(sys.argv[1], concurrency=2), ("m",))
result = judge_models.judge_answers(base, [tuned], questions, judges, Path(sys.argv[2]))[0]
print(len(result.rows), result.rows[0].n)
"""


def test_kill_9_in_the_middle_of_judging_loses_nothing(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: time.sleep(0.05) or "[[6]]"
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
    first = subprocess.Popen(command)
    end = time.monotonic() + 120
    while len(server.calls) < 9 and time.monotonic() < end:
        time.sleep(0.01)
    first.kill()
    first.wait()
    time.sleep(0.2)  # what was under way is answered
    killed = len(server.calls)
    assert 9 <= killed < 24
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "12"]
    assert 24 <= len(server.calls) <= 24 + 2  # again only what was under way, two at a time
    assert len({json.dumps(call) for call in server.calls}) == 24


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_real_server_judges_two_real_models(chats: Any, tmp_path: Path) -> None:
    """transformers serve with SmolLM2 as the judge: each of its replies is a verdict or none, whatever it writes."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("needs transformers[serving]")
    folder, port = assets.resolve("asset:smollm2-135m-instruct"), free_port()
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    code = "import sys; from transformers.cli.transformers import main; main()"
    with (tmp_path / "serve.log").open("w") as log:
        process = forks.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 240
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.5)
        arguments = [
            "judge", *map(str, chats), "--questions", "cltk:prompts/two_turns.jsonl", "--limit", "2", "--max-new-tokens", "8",
            "--endpoint", f"http://127.0.0.1:{port}/v1", "--model", str(folder), "--judge-args", "max_tokens=48",
            "--concurrency", "1", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "r.json"),
        ]  # fmt: skip
        assert main(arguments) in (0, 1), (tmp_path / "serve.log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()
    result = json.loads((tmp_path / "r.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / judge_models.WRITTEN).read_text().splitlines()]
    assert (result["turns"], len(rows)) == (4, 8)
    assert all(row["reply"].strip() for row in rows)  # it did answer
    judged = {(row["question_id"], row["turn"]) for row in rows if row["verdict"] is None}
    assert {f"{question}/{turn}" for question, turn in judged} == set(result["unjudged"])
