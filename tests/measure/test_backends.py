"""`--backend`: models that a server or another class of lm-eval's runs, through the same suite and table. float32.

Situations from EleutherAI/lm-evaluation-harness#1437, #4158 and ggml-org/llama.cpp#27174 (a server that ignores echo: every
choice scores 0, the whole suite is at chance without a word), lm-evaluation-harness#1409 and #3275 (choices asked of a chat
endpoint, found out in a traceback), #1411 (the server's own error hidden), #3088 (arguments that API models ignore).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.backend import Backend
from cltk.measure.evaluate import TextTask
from tests.conftest import CHATML, sentences, write_jsonl
from tests.measure.gguf_files import write_gguf
from tests.measure.openai_server import llama_server, serving

TASKS: dict[str, Any] = {"tasks": ["toy", "last_word", "rolling", "written"], "include_path": "tasks", "limit": 6}
KINDS = {
    "last_word": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: ' {{choices[1]}}'\n"
    "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, {metric: acc}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}'\n"
    "metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]\n",
    "written": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {max_gen_toks: 5, until: ['.']}\nmetric_list: [{metric: exact_match}]\n",
}
needs_api = pytest.mark.skipif(find_spec("tenacity") is None, reason="needs tenacity (lm-eval[api])")


@pytest.fixture(autouse=True)
def _in_folder(study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setenv("CLTK_CACHE", str(study / "cache"))
    tiny(seed=1).save_pretrained("tuned")
    tokenizer.save_pretrained("tuned")
    head = "dataset_path: json\ndataset_kwargs: {data_files: {validation: tasks/docs.jsonl}}\nvalidation_split: validation\n"
    for name, text in KINDS.items():
        Path(f"tasks/{name}.yaml").write_text(f"task: {name}\n{head}{text}")


@pytest.fixture
def two(tiny: Any, tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """A server of tiny-llama and one of tuned."""
    with serving(tiny(), tokenizer) as first, serving(tiny(seed=1), tokenizer) as second:
        yield first, second


def args(url: str, **more: Any) -> dict[str, Any]:
    """Of local-completions: the tokeniser is here, and a failure is not asked for three times."""
    return {"base_url": f"{url}/completions", "tokenizer": "tiny-llama", "max_retries": 1, **more}


def texts() -> list[Any]:
    rows = [{"text": s} for s in sentences(5, seed=9)]
    spans = {"input_ids": list(range(20, 40)), "labels": [-100] * 5 + list(range(25, 30)) + [-100] * 5 + list(range(35, 40))}
    return [TextTask("words", rows), TextTask("spans", [spans])]


def numbers(result: Any) -> dict[str, list[float]]:
    return {f"{row.task} {row.metric}": [row.pre, row.post] for row in result.rows}


@needs_api
def test_a_server_scores_as_the_model_itself(two: Any) -> None:
    """Every kind of request and two texts: what lm-eval's class gets from the server against cltk on the same weights."""
    (one, _), (other, _) = two
    served = cltk.measure(
        "tiny-llama", "tuned", **TASKS, texts=texts(), backend="local-completions", base_args=args(one), tuned_args=args(other)
    )
    here = cltk.measure("tiny-llama", "tuned", **TASKS, texts=texts(), dtype="float32", kl_rows=0, journal=False)
    assert numbers(served).keys() == numbers(here).keys()
    for name, found in numbers(served).items():
        assert found == pytest.approx(numbers(here)[name], rel=1e-5, abs=1e-4), name
    for task, rows in served.samples.items():
        for row, same in zip(rows, here.samples[task], strict=True):
            assert [row["doc_hash"], row["prompt_hash"]] == [same["doc_hash"], same["prompt_hash"]]
            assert {k: row[k] for k in row if k.endswith(("_pre", "_post"))} == pytest.approx(
                {k: same[k] for k in same if k.endswith(("_pre", "_post"))}, rel=1e-5, abs=1e-3
            )


@needs_api
def test_what_is_absent_is_said(two: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with a key in the environment that no result holds; no weights' digest, no KL."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecretkey0123456789A")
    (one, first), (other, _) = two
    write_jsonl(Path("held.jsonl"), [{"text": s} for s in sentences(3, seed=8)])
    words = [
        "measure",
        "base-name",
        "tuned-name",
        "--backend",
        "local-completions",
        "--tasks",
        "toy",
        "--include-path",
        "tasks",
    ]
    words += [
        "--limit",
        "4",
        "--text",
        "held.jsonl",
        "--json",
        "out.json",
        "--model-args",
        "tokenizer=tiny-llama,max_retries=1",
    ]
    words += ["--output-path", "files", "--log-samples"]
    assert main([*words, "--base-args", f"base_url={one}/completions", "--tuned-args", f"base_url={other}/completions"]) == 0
    said, result = capsys.readouterr(), json.loads(Path("out.json").read_text())
    assert "no digest" in said.out
    assert "KL is left out" in said.out
    assert (result["pre_digest"], result["divergence"], result["settings"]["scorer"]) == ("", {}, "backend local-completions")
    models = result["settings"]["models"]
    assert (models["base"]["name"], models["tuned"]["backend"]) == ("base-name", "local-completions")
    assert first.headers_seen[0]["Authorization"].endswith("sk-verysecretkey0123456789A")
    assert {one["model"] for one in first.asked} == {"base-name"}
    written = [file for file in Path().rglob("*") if file.is_file()]
    assert any(file.name.startswith("samples_toy") for file in written)
    assert not [file for file in written if b"verysecret" in file.read_bytes()]
    assert "verysecret" not in said.out + said.err
    assert main(["gate", "out.json", "--budget", "acc=0.9"]) in (0, 3, 4)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="needs llama-cpp-python[server]")
@needs_api
def test_a_real_server(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """llama-cpp-python's, started here: what it scores is what the model scores, or, without a BOS, is refused.

    It zips the tokens of an echoed prompt with the predictions behind them, and is right where a BOS, which it drops, moves
    one of the two by one.
    """
    from tokenizers.processors import TemplateProcessing

    model = tiny(tie_word_embeddings=False, intermediate_size=64)
    begun = copy.deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
    model.save_pretrained("whole")
    begun.save_pretrained("whole")
    how: dict[str, Any] = {**TASKS, "tasks": ["toy", "last_word"]}
    here = cltk.measure("whole", "whole", **how, dtype="float32", journal=False)
    for begins in (True, False):
        write_gguf(tmp_path / "whole.gguf", model, tokenizer, "F32", begins=begins)
        with llama_server(tmp_path / "whole.gguf") as url:
            told: dict[str, Any] = {"backend": "local-completions", "model_args": args(url, tokenized_requests=False)}
            if not begins:
                with pytest.raises(InputError, match=r"chain rule|counts one token off"):
                    cltk.measure("a", "b", **how, **told)
                continue
            served = cltk.measure("a", "b", **how, **told)
    for name, found in numbers(served).items():
        assert found == pytest.approx(numbers(here)[name], rel=1e-3, abs=1e-3), name


FAULTS = [
    ("no echo", "does not echo the prompt"),
    ("silent", "does not score what it is given"),
    ("bos", "chain rule"),
    ("other vocabulary", "reads the tokens"),
    ("one off", "generates greedily"),
    ("broken", "the disk of this server is full"),
]


@needs_api
@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_a_server_at_fault_is_refused_before_the_suite(fault: str, line: str, tiny: Any, tokenizer: Any, capsys: Any) -> None:
    with serving(tiny(tie_word_embeddings=False), tokenizer, fault) as (url, server):  # one that does not repeat itself
        given = json.dumps(args(url))
        words = ["measure", "a", "b", "--backend", "local-completions", "--tasks", "toy", "--include-path", "tasks"]
        assert main([*words, "--model-args", given]) == 2
        said = capsys.readouterr().err.strip()
        assert line in said
        assert "\n" not in said
        assert len(server.asked) <= 10  # of the proof alone


@needs_api
def test_text_requests_to_a_server_without_a_bos_are_as_good(two: Any) -> None:
    """tokenized_requests=False: the server's own tokeniser cuts the text."""
    (one, _), (other, _) = two
    how: dict[str, Any] = {**TASKS, "tasks": ["toy"], "backend": "local-completions"}
    result = cltk.measure(
        "a", "b", **how, base_args=args(one, tokenized_requests=False), tuned_args=args(other, tokenized_requests=False)
    )
    same = cltk.measure("a", "b", **how, base_args=args(one, batch_size=3), tuned_args=args(other, num_concurrent=2))
    for name, found in numbers(result).items():
        assert found == pytest.approx(numbers(same)[name], rel=1e-5), name


@needs_api
def test_no_token_of_a_prompt_is_taken_for_a_generated_one(tiny: Any, tokenizer: Any) -> None:
    """A server that would generate an end gives an entry less."""
    found = []
    for fault in ("", "ends"):
        with serving(tiny(), tokenizer, fault) as (url, _):
            how: dict[str, Any] = {**TASKS, "tasks": ["toy"], "backend": "local-completions", "model_args": args(url)}
            found.append(numbers(cltk.measure("a", "b", **how)))
    assert found[0] == found[1]


@needs_api
def test_conversations_are_generated_by_a_chat_server(tiny: Any, tokenizer: Any) -> None:
    """Choices are refused before a request; answers are asked for as turns, and no log-probability is."""
    with serving(tiny(), tokenizer) as (url, server):
        how: dict[str, Any] = {
            "include_path": "tasks", "limit": 4, "backend": "local-chat-completions", "chat_template": True,
            "model_args": {"base_url": f"{url}/chat/completions", "max_retries": 1},
        }  # fmt: skip
        with pytest.raises(InputError, match=r"gives no log-probabilities, which toy need"):
            cltk.measure("a", "b", ["toy"], **how)
        with pytest.raises(InputError, match=r"takes conversations"):
            cltk.measure("a", "b", ["written"], **{**how, "chat_template": False})
        assert server.asked == []
        result = cltk.measure("a", "b", ["written"], texts=texts()[:1], **how)
        assert {row.task for row in result.rows} == {"written"}
        assert any("text words: left out" in note for note in result.notes)
        assert all(one["messages"][-1]["role"] == "user" for one in server.asked)


def test_another_class_of_lm_eval_s(tokenizer: Any) -> None:
    """--backend hf on folders: lm-eval's own class, its chat template, cltk's table. Random answers are called random."""
    for folder in ("tiny-llama", "tuned"):
        tokenizer.chat_template = CHATML
        tokenizer.save_pretrained(folder)
        tokenizer.chat_template = None
    how: dict[str, Any] = {**TASKS, "chat_template": True}
    by = cltk.measure("tiny-llama", "tuned", **how, backend="hf", dtype="float32", batch_size=4)
    here = cltk.measure("tiny-llama", "tuned", **how, dtype="float32", journal=False)
    assert {name: pytest.approx(found, rel=1e-5, abs=1e-4) for name, found in numbers(by).items()} == numbers(here)
    drawn = cltk.measure("a", "b", ["toy"], include_path="tasks", limit=4, backend="dummy")
    assert any("random" in note for note in drawn.notes)


REFUSED = [
    ("vlm", {}, "did you mean vllm"),
    ("vllm", {}, "vllm"),
    ("local-completions", {}, "base_url=http"),
    ("local-completions", {"base_url": "http://127.0.0.1:9/v1/chat/completions"}, "takes conversations"),
    ("local-completions", {"base_url": "http://127.0.0.1:9/v1/completions", "tokeniser": "x"}, "did you mean tokenizer"),
    ("local-completions", {"base_url": "http://127.0.0.1:9/v1/completions", "enable_thinking": False}, "would be ignored"),
    ("local-completions", {"base_url": "http://127.0.0.1:9/v1/completions", "auth_token": "x"}, "environment"),
    ("local-completions", {"base_url": "http://127.0.0.1:9/v1/completions", "header": {"Authorization": "x"}}, "environment"),
    ("hf", {"pretrained": "no-such-folder"}, "backend hf"),
]


@pytest.mark.parametrize(("name", "given", "line"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)])
def test_what_cannot_be_is_refused_in_a_line(name: str, given: dict[str, Any], line: str, capsys: Any) -> None:
    words = ["measure", "a", "b", "--backend", name, "--tasks", "toy", "--include-path", "tasks"]
    assert main([*words, "--model-args", json.dumps(given)]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said


@needs_api
def test_a_server_that_is_not_there(capsys: Any) -> None:
    words = ["measure", "a", "b", "--backend", "local-completions", "--tasks", "toy", "--include-path", "tasks"]
    assert main([*words, "--model-args", json.dumps(args("http://127.0.0.1:9/v1"))]) == 2
    said = capsys.readouterr().err.strip()
    assert "http://127.0.0.1:9/v1/completions does not answer" in said
    assert "\n" not in said


def test_a_live_model_and_looks_are_no_backend_s(tiny: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="a model is named"):
        Backend("hf", (tiny(), tokenizer), {})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="until"):
        cltk.measure("tiny-llama", "tuned", ["toy"], include_path="tasks", backend="hf", until=0.1)
