"""An OpenAI-compatible chat endpoint, asked with patience: retries, a rate, several at a time, a key that is never written."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cltk.errors import InputError, RunError
from cltk.measure.judge_prompts import CUT
from cltk.measure.judge_questions import Messages
from cltk.secrets import HIDDEN, SHORTEST, hidden

KEY = "CLTK_JUDGE_KEY"  # the environment variable that holds the key, where none is named
LARGEST = 1 << 24  # bytes of a reply that are read
WAIT = 300.0  # seconds, the longest pause that a server may ask for
AGAIN = (408, 409, 425, 429)  # beside 5xx: asked again


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass
class Client:
    """Where judges are asked.

    Args:
        endpoint: its address, up to /v1 or with /chat/completions.
        key_env: the environment variable with the key; required for https, not sent in the clear to other machines.
        settings: fields of the request beside model and messages; None leaves one out (temperature, max_tokens).
        retries: how often a request is asked again after 429, 5xx, a timeout, a lost connection or a reply that is none.
        timeout: seconds without a byte.
        rate: requests a minute at most; None: as many as come.
        concurrency: requests at a time.
        pause: seconds before the first retry; doubled with each, up to a minute. Retry-After goes before it.

    Raises:
        InputError: an address that is none, or holds a password; a key that is missing, or would be sent in the clear.
    """

    endpoint: str
    key_env: str = KEY
    settings: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 6
    timeout: float = 300.0
    rate: float | None = None
    concurrency: int = 4
    pause: float = 1.0

    def __post_init__(self) -> None:
        self.url, self.local = _address(self.endpoint)
        for name, least in (("retries", 0), ("timeout", 0.001), ("concurrency", 1), ("pause", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"judge: {name} must be at least {least:g}, got {getattr(self, name)}")
        if self.rate is not None and not self.rate > 0:
            raise InputError(f"judge: rate must be above 0 requests a minute, got {self.rate}")
        self._key()
        handlers: list[Any] = [_Stay(), *([urllib.request.ProxyHandler({})] if self.local else [])]
        self._opener, self._lock, self._next = urllib.request.build_opener(*handlers), threading.Lock(), 0.0

    def body(self, model: str, messages: Messages) -> dict[str, Any]:
        """The request, without the key: what a judgement follows from."""
        found = {"temperature": 0.0, "max_tokens": 2048, **self.settings}
        return {"model": model, "messages": messages, **{key: value for key, value in found.items() if value is not None}}

    def ask(self, body: Mapping[str, Any]) -> str:
        """The reply's text.

        Raises:
            RunError: the endpoint refused the request, or gave no reply in so many tries.
        """
        said = ""
        for tried in range(self.retries + 1):
            self._turn()
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                said, wait = self._refused(error), _retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:  # no connection, a timeout, no JSON
                said, wait = self._clean(f"{type(error).__name__}: {getattr(error, 'reason', error)}"), None
            if tried < self.retries:
                self._hold(min(60.0, self.pause * 2**tried) * random.uniform(0.5, 1.0) if wait is None else wait)
        again = "run the same command again: what was judged is kept"
        raise RunError(f"judge {self.url}: no reply in {self.retries + 1} tries ({said}); {again}")

    def _once(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "cltk"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.timeout) as reply:
            found = json.loads(reply.read(LARGEST))
        try:
            choice = found["choices"][0]
            text = choice["message"].get("content")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ValueError(f"no chat completion: {str(found)[:200]}") from None
        if isinstance(text, list):  # of parts, as some servers give it
            text = "".join(
                str(part.get("text") or "") for part in text if isinstance(part, dict) and part.get("type") == "text"
            )
        if not isinstance(text, str):
            return ""
        text = self._without_key(text).encode("utf-8", "replace").decode()  # half a surrogate pair could not be written
        return text + CUT if choice.get("finish_reason") == "length" else text

    def _refused(self, error: urllib.error.HTTPError) -> str:
        """What the endpoint says; raises RunError where asking again changes nothing."""
        with error:
            text = error.read(4096).decode("utf-8", "replace")
        said = self._clean(f"HTTP {error.code}: {' '.join(text.split())[:300]}")
        if (error.code not in AGAIN and error.code < 500) or "insufficient_quota" in text:
            advice = f"; the key is read from {self.key_env}" if error.code in (401, 403) else ""
            raise RunError(f"judge {self.url}: {said}{advice}") from None
        return said

    def _key(self) -> str:
        found = os.environ.get(self.key_env, "")
        secure = self.url.startswith("https:")
        if found and not secure and not self.local:
            raise InputError(f"judge {self.url}: the key in {self.key_env} would be sent in the clear; use https, or unset it")
        if not found and (secure or self.key_env != KEY):
            raise InputError(f"judge {self.url}: the environment variable {self.key_env} holds no key; set it, or name another")
        if not found.isascii() or not found.isprintable():
            raise InputError(f"judge {self.url}: the key in {self.key_env} is no plain text; set it without line ends")
        return found

    def _clean(self, text: str) -> str:
        return hidden(self._without_key(text))

    def _without_key(self, text: str) -> str:
        """An endpoint may repeat what it was sent."""
        key = os.environ.get(self.key_env, "")
        return text.replace(key, HIDDEN) if len(key) >= SHORTEST else text

    def _turn(self) -> None:
        """Waits until one more request may be sent."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next)
            self._next = at + (60 / self.rate if self.rate else 0.0)
        time.sleep(max(0.0, at - now))

    def _hold(self, seconds: float) -> None:
        """No request of any thread before so many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait for, given in seconds or as a date."""
    if value is None:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(wait, 0.0), WAIT) if wait == wait else None


def _address(endpoint: str) -> tuple[str, bool]:
    """The address of chat completions, and whether it is this machine."""
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"judge: endpoint {hidden(endpoint)!r} is no address; give one like http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or hidden(endpoint) != endpoint:
        raise InputError("judge: endpoint: a key or password does not belong in an address; set it in the environment")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    try:
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        local = False
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", "")), local
