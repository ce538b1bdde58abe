"""An OpenAI-compatible endpoint that says, and does wrong, what a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """An OpenAI-compatible endpoint in this process: `reply` says what, `faults` what goes wrong first."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], bool]] = []
        self.reply: Callable[[dict[str, Any]], Any] = lambda body: "Grade: [[7]]"
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.calls.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.times.append(time.monotonic())
                    fault = outer.faults.pop(0) if outer.faults else None
                if fault is not None and fault(self):
                    return
                text = outer.reply(body)
                send(self, 200, {"choices": [{"message": {"role": "assistant", "content": text}}]})

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def send(handler: BaseHTTPRequestHandler, code: int, data: Any, **headers: str) -> bool:
    text = (data if isinstance(data, str) else json.dumps(data)).encode()
    try:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
    except OSError:
        pass  # the client has gone
    return True
