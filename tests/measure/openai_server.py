"""A server that speaks OpenAI's completions protocol for a tiny model, with the faults that servers have.

Written from the protocol alone: the model's own forward, log softmax, nothing of cltk or lm-eval.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch


class Completions(BaseHTTPRequestHandler):
    """`POST /v1/completions` with echo and logprobs, and greedy generation; `fault` makes it another one."""

    model: Any
    tokenizer: Any
    fault = ""
    asked: list[dict[str, Any]]
    headers_seen: list[dict[str, str]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append({"path": self.path, **body})
        self.headers_seen.append(dict(self.headers))
        if self.fault == "broken":
            return self.send(500, {"error": "the disk of this server is full"})
        if self.path.endswith("/chat/completions"):
            said = "".join(message["content"] for message in body["messages"])
            texts = [self.generated(self.ids(said), body)]
            return self.send(200, {"choices": [{"index": i, "message": {"content": t}} for i, t in enumerate(texts)]})
        prompts = body["prompt"]
        prompts = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
        choices = [self.choice(i, self.ids(prompt), body) for i, prompt in enumerate(prompts)]
        answer: dict[str, Any] = {"object": "text_completion", "choices": choices}
        if self.fault == "ends":
            answer["usage"] = {"completion_tokens": 0}
        return self.send(200, answer)

    def do_GET(self) -> None:
        self.send(404, {"error": "no such thing"})

    def ids(self, prompt: Any) -> list[int]:
        found = list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)
        if self.fault == "other vocabulary":
            found = [(token + 7) % 290 for token in found]
        return [self.tokenizer.bos_token_id, *found] if self.fault == "bos" else found

    def choice(self, index: int, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        if not body.get("echo"):
            return {"index": index, "text": self.generated(ids, body), "logprobs": None}
        with torch.no_grad():
            table = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        last = int(table[-1].argmax())
        if self.fault == "silent":
            table = torch.zeros_like(table)
        kept = [last] if self.fault == "no echo" else [*ids, last]
        before = [table[-1]] if self.fault == "no echo" else [None, *table]
        before = [None, *table[1:], table[-1]] if self.fault == "one off" else before
        names = [self.tokenizer.decode([token]) for token in kept]
        given = [None if row is None else float(row[token]) for row, token in zip(before, kept, strict=True)]
        best = [None if row is None else {"best": float(row.max())} for row in before]
        if self.fault == "ends":  # at once: no token is generated
            names, given, best = names[:-1], given[:-1], best[:-1]
        marks = {"tokens": names, "token_logprobs": given, "top_logprobs": best}
        return {"index": index, "text": self.tokenizer.decode(kept), "logprobs": marks}

    def generated(self, ids: list[int], body: dict[str, Any]) -> str:
        with torch.no_grad():
            out = self.model.generate(torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False, pad_token_id=1)
        text = str(self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
        for stop in [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []:
            text = text.split(stop)[0] if stop else text
        return text

    def send(self, code: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(model: Any, tokenizer: Any, fault: str = "") -> Iterator[tuple[str, Any]]:
    """Its address up to /v1, and the class that remembers what was asked."""
    model.eval()
    kind = type("Served", (Completions,), {
        "model": model, "tokenizer": tokenizer, "fault": fault, "asked": [], "headers_seen": [],
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", kind
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def llama_server(file: Path) -> Iterator[str]:
    """llama-cpp-python's own server of a GGUF file: its address up to /v1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(file), "--logits_all", "true", "--n_ctx", "256", "--n_threads", "1", "--port", str(port)]
    command = [sys.executable, "-m", "llama_cpp.server", *words, "--host", "127.0.0.1"]
    log = file.with_suffix(".log")
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=dict(os.environ))
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()
