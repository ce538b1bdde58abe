"""Python processes forked from one that has imported torch, transformers and lm-eval: a start takes 10 s of a slow processor.

    from tests import forks

`forks.Popen` and `forks.run` are those of `subprocess`, for tests that start Python as a user does. Where the command is
[sys.executable, "-m" | "-c" | FILE, ...], the process is a fork: a process of its own, with its own number, environment, folder
and files, which imports cltk itself and can be killed. So are the ones that it starts (torchrun's ranks). Other commands start
as always. A test that looks at imports, at memory or at the start itself takes `subprocess`; so does one that needs processes
with hashes of their own, which forks share.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PLACE = "CLTK_TEST_FORKS"  # the environment's name of the server's socket
HEAD = 8  # bytes that say how long a request is
WAIT = 180  # seconds that the imports may take
ROOT = Path(__file__).parents[1]
OWN = ("", str(ROOT), str(ROOT / "tests"))  # what only this file has on its path
ENVIRONMENT = dict(os.environ)  # before any test changed it


@functools.cache
def server() -> str:
    """The socket of the server, which is started where there is none, and ends with this process."""
    if place := os.environ.get(PLACE):
        return place
    folder = tempfile.mkdtemp(prefix="cltk-forks-", dir="/tmp")  # the name of a socket has room for 100 characters
    place = str(Path(folder) / "socket")
    process = subprocess.Popen([sys.executable, __file__, "serve", place], cwd=ROOT, env=ENVIRONMENT)

    def close() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(close)
    until = time.monotonic() + WAIT
    while not Path(place).exists():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the server of forks did not start")
        time.sleep(0.02)
    return place


def ask(words: list[str], cwd: str, env: dict[str, str], files: list[int], **more: bool) -> tuple[socket.socket, int]:
    """A fork that runs `python WORDS...`: where its status will arrive, and its process number."""
    place = server()
    request = json.dumps({"words": words, "cwd": cwd, "env": {**env, PLACE: place}, **more}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(place)
    socket.send_fds(connection, [len(request).to_bytes(HEAD, "big")], files)
    connection.sendall(request)
    return connection, int.from_bytes(received(connection, HEAD), "big")


def received(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := connection.recv(size - len(data))):
            raise EOFError
        data += more
    return data


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen, except that Python is forked."""

    _forked: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, *rest: Any) -> None:  # type: ignore[override]
        pass_fds, cwd, env, _, _, shell, p2cread, _, _, c2pwrite, _, errwrite = rest[:12]
        python = isinstance(args, list | tuple) and not shell and str(args[0]) == sys.executable
        words = [os.fspath(word) for word in args[1:]] if python else []
        safe = "-P" in words[:2]
        while words and words[0] in ("-u", "-P"):
            words = words[1:]
        if words[:2] == ["-m", "pytest"] or not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
            python = False  # pytest rewrites modules as they are imported
        if not python or preexec_fn or pass_fds:
            super()._execute_child(args, executable, preexec_fn, close_fds, *rest)  # type: ignore[misc]
            return
        files = [file if file != -1 else own for own, file in enumerate((p2cread, c2pwrite, errwrite))]
        environment = dict(os.environ if env is None else env)
        self._forked, self.pid = ask(words, os.path.abspath(cwd or "."), environment, files, safe=safe, session=bool(rest[-2]))
        self._child_created = True
        self._close_pipe_fds(*rest[6:12])  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._forked is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        self._forked.setblocking(not wait_flags & os.WNOHANG)
        try:
            status = int.from_bytes(received(self._forked, HEAD), "big")
        except BlockingIOError:
            return 0, 0
        except EOFError:
            status = signal.SIGKILL
        self._forked.close()
        return self.pid, status

    def _internal_poll(self, *args: Any, **named: Any) -> int | None:
        if self._forked is None:
            return super()._internal_poll(*args, **named)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def run(
    command: Any, *, timeout: float | None = None, check: bool = False, **settings: Any
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run, except that Python is forked."""
    if settings.pop("capture_output", False):
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **settings) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


RANK = """
import importlib, sys
module, name, rank, *words = sys.argv[1:]
getattr(importlib.import_module(module), name)(int(rank), *words)
"""


def ranks(function: Callable[..., None], *words: str) -> None:
    """Two processes that call FUNCTION(rank, *words); what one raised is raised."""
    command = [sys.executable, "-c", RANK, function.__module__, function.__name__]
    folder = str(Path(function.__code__.co_filename).parent)  # tests are imported from there, by a short name
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    started = [Popen([*command, str(rank), *words], env=env, text=True, stderr=subprocess.PIPE) for rank in range(2)]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(text[-3000:] for text in said)


def import_libraries() -> None:
    """What the commands import, but cltk. Nothing is computed: threads do not survive a fork."""
    import accelerate
    import lm_eval.evaluator
    import lm_eval.loggers
    import lm_eval.models.huggingface
    import lm_eval.tasks
    import matplotlib.figure
    import pandas
    import peft
    import pydantic
    import rich.console
    import rich.progress
    import scipy.stats
    import torch.distributed.run
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer
    from trl import SFTTrainer

    named = (accelerate, lm_eval, matplotlib, pandas, peft, pydantic, rich, scipy, torch, trl, load_dataset)
    assert all((*named, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, SFTTrainer))


def serve(place: str) -> None:
    import gc

    import_libraries()
    gc.collect()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place + ".new")
    listener.listen(64)
    os.rename(place + ".new", place)  # it exists when it is ready
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    parent = os.getppid()
    listener.settimeout(5)
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                keep(connection)
            connection.close()


def keep(connection: socket.socket) -> NoReturn:
    """Between the server and a fork, for whom it waits."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.setblocking(True)
    head, files, *_ = socket.recv_fds(connection, HEAD, 3)
    request = json.loads(received(connection, int.from_bytes(head, "big")))
    pid = os.fork()
    if not pid:
        connection.close()
        live(request, files)
    for file in files:
        os.close(file)
    connection.sendall(pid.to_bytes(HEAD, "big"))
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(HEAD, "big"))
    os._exit(0)


def live(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Becomes `python WORDS...`."""
    code = 1
    try:
        if request["session"]:
            os.setsid()
        for own, file in enumerate(files):
            os.dup2(file, own)
            os.close(file)
        settle(request)
        execute(*request["words"], safe=request["safe"])
        code = 0
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 255)


def settle(request: dict[str, Any]) -> None:
    """Folder, environment and what a process reads from it as it starts."""
    import numpy
    import torch

    before, env = os.environ.get("OMP_NUM_THREADS"), request["env"]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(env)
    if env.get("OMP_NUM_THREADS") != before:
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    numpy.random.seed()
    subprocess.Popen = Popen  # type: ignore[misc]
    sys.path[:] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *(path for path in sys.path if path not in OWN)]
    sys.modules.pop("tests", None)


def execute(first: str, *others: str, safe: bool) -> None:
    if first == "-m":
        sys.argv, sys.path[:0] = list(others), [] if safe else [os.getcwd()]
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[:0] = ["-c", *others[1:]], [] if safe else [""]
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(others[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[:0] = [first, *others], [] if safe else [str(Path(first).resolve().parent)]
        runpy.run_path(first, run_name="__main__")


@functools.cache
def shims() -> Path:
    """A folder of programs `python` and `cltk` for scripts of a shell: they fork, too."""
    folder = Path(server()).parent
    for name, words in {"python": "", "cltk": "-m cltk "}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{__file__}" call {words}"$@"\n')
        (folder / name).chmod(0o755)
    return folder


def call(words: list[str]) -> int:
    """What a shim does: a fork with its files, to which signals are handed on."""
    process = Popen([sys.executable, *words])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda given, _: process.send_signal(given))
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "serve":
        serve(*words)
    sys.exit(call(words))
