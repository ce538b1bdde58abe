"""lm-eval's Hugging Face model, scoring each shared context once. Scores equal the stock ones up to rounding.

Tokenisation, truncation, chat templates and generation are lm-eval's own code (the class is an `HFLM`); only the forward passes
of `loglikelihood` and `loglikelihood_rolling` differ. `prefix_tree.py` plans them, `tree_forward.py` runs them.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval import utils
from lm_eval.models.huggingface import HFLM

from cltk.errors import InputError, RunError
from cltk.measure.journal import Journal, request_key
from cltk.measure.prefix_tree import Packed, Requests, Span, batches, pack, spans
from cltk.measure.tree_forward import TreeForward, UnsupportedModelError
from cltk.ranks import gathered, ranks, shared

log = logging.getLogger(__name__)

Answer = tuple[float, bool]  # (log-probability in nats, whether greedy decoding gives the continuation)
Request = tuple[tuple[str, str] | None, list[int], list[int]]  # (text or None, context ids, continuation ids)
CHECKED = 4  # requests of a batch that are compared with the stock path


class PrefixLM(HFLM):
    """`HFLM` with shared prefixes, length-sorted batches and logits only where a token is scored.

    log p(continuation | context) = sum over continuation tokens of log softmax(logits)[token], in nats.

    The first batch of each kind (plain rows, trees, trees behind a cached prefix) is compared with the stock path on a few
    requests. A model that cannot run on trees, or that disagrees, is scored by the stock path, with one warning.

    Args:
        model: A transformers causal language model, on its device and in its dtype; put in eval mode.
        tokenizer: Its tokenizer.
        max_tokens: Padded tokens a forward; "auto": 1024 on the CPU, where caches are small, 16384 elsewhere.
        batch_size: Of the stock path and of generation; "auto": 8 on the CPU, 32 elsewhere.
        journal: Where answers are kept and looked up; needs `digest`.
        digest: Of the model's weights (and dtype), part of every journal key.
        progress: Called after every batch with (requests done, requests in all, tokens computed so far).

    Raises:
        InputError: A journal without a digest.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int | str = "auto",
        batch_size: int | str = "auto",
        journal: Journal | None = None,
        digest: str = "",
        progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        if journal is not None and not digest:
            raise InputError("PrefixLM: a journal needs `digest`, the digest of the model's weights, in its keys")
        cpu = model.device.type == "cpu"
        self.max_tokens = (1024 if cpu else 16384) if max_tokens == "auto" else int(max_tokens)
        size = (8 if cpu else 32) if batch_size == "auto" else int(batch_size)
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=size)
        self.journal, self.digest, self.progress = journal, digest, progress
        self._trees: TreeForward | None = TreeForward(model)
        self._agreed: set[tuple[bool, bool]] = set()

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in nats: the sum over lm-eval's disjoint windows of at most `max_length` tokens."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            (text,) = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [utils.make_disjoint_window(window) for window in rolling]
            windows.extend((None, *pair) for pair in pairs)
            counts.append(len(pairs))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """(logprob, greedy) of every request. Batches are composed from all requests, so a resumed run repeats them."""
        distinct = Requests([self._truncated(request, n) for n, request in enumerate(requests)])
        cut = sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests)
        if cut:
            log.warning(f"{cut} of {len(requests)} requests are longer than {self.max_length} tokens: cut from the left")
        copies = np.bincount(distinct.place, minlength=len(distinct))
        answers = self._recalled(distinct)
        done = tokens = 0
        if self._trees is not None:
            self._trees.forget()
        self.model.eval()
        rank, world = ranks()
        planned = [(batch, _members(batch)) for batch in batches(spans(distinct), self.max_tokens)]
        with torch.inference_mode():
            for start in range(0, len(planned), world):  # every rank does one batch, then all know the answers of all
                turn = planned[start : start + world]
                todo = [any(k not in answers for k in members) for _, members in turn]
                fresh = self._batch(distinct, turn[rank][0]) if rank < len(turn) and todo[rank] else {}
                for found in gathered(fresh) if any(todo) else ():
                    self._refuse_nan(found, distinct, requests)
                    self._record(found, distinct)
                    answers |= {k: answer for k, answer in found.items() if k not in answers}
                tokens += sum(span.size for (batch, _), due in zip(turn, todo, strict=True) if due for span in batch)
                done += sum(int(copies[members].sum()) for _, members in turn)
                if self.progress:
                    self.progress(done, len(requests), tokens)
        results = [answers[int(k)] for k in distinct.place]
        for (text, _, _), answer in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return results

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """lm-eval's own generation; several ranks share the requests."""
        return shared(lambda part: super(PrefixLM, self).generate_until(part, disable_tqdm) if part else [], requests)

    def _truncated(self, request: Request, number: int) -> tuple[list[int], int]:
        """Token ids of context + continuation, cut from the left as HFLM does, and the number of scored ones."""
        _, context, continuation = request
        if not context or not 0 < len(continuation) <= self.max_length:
            raise InputError(
                f"{_name(request, number)}: {len(context)} context and {len(continuation)} continuation tokens; lm-eval needs"
                f" at least one of each and at most {self.max_length} (the model's length) to score; change the task's text"
            )
        return (context + continuation)[-(self.max_length + 1) :], len(continuation)

    def _batch(self, requests: Requests, batch: list[Span]) -> dict[int, Answer]:
        """Answers of a batch by request number; decides on the first batch of a kind whether trees can be used."""
        if self._trees is None:
            return self._stock(requests, _members(batch))
        packed = pack(requests, batch)
        kind = (packed.branching, len(packed.prefix) > 0)
        try:
            answers = self._tree_answers(requests, batch, packed)
            if kind not in self._agreed:
                self._compare(requests, packed, answers)
            self._agreed.add(kind)
            return answers
        except (UnsupportedModelError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            if kind in self._agreed or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).split("\n")[0]
        message = f"{type(self.model).__name__}: contexts are not shared, lm-eval's own scoring is used: {reason}"
        warnings.warn(message, stacklevel=2)
        self._trees = None
        return self._batch(requests, batch)

    def _tree_answers(self, requests: Requests, batch: list[Span], packed: Packed) -> dict[int, Answer]:
        """By one forward; by several of half the size where the device has not the memory."""
        assert self._trees is not None
        try:
            return _answers(packed, *self._trees.log_probs(packed))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        first, second = (self._tree_answers(requests, half, pack(requests, half)) for half in halves)
        return first | second

    def _compare(self, requests: Requests, packed: Packed, ours: dict[int, Answer]) -> None:
        """Raise UnsupportedModelError where a few requests, those that a wrong mask hits most, disagree with stock."""
        few = packed.requests[np.argsort(-packed.gaps(), kind="stable")[:CHECKED]].tolist()
        for k, (stock, _) in self._stock(requests, few).items():
            mine = ours[k][0]
            if not (abs(mine - stock) <= _tolerance(self.model.dtype, stock) or (np.isnan(mine) and np.isnan(stock))):
                raise UnsupportedModelError(f"log-probability {mine:.6f} against {stock:.6f}")

    def _stock(self, requests: Requests, members: Sequence[int]) -> dict[int, Answer]:
        """The same answers by lm-eval's own code."""
        split = [(requests.tokens[k].tolist(), int(requests.scored[k])) for k in members]
        plain: list[Any] = [(None, tokens[:-scored], tokens[-scored:]) for tokens, scored in split]
        return dict(zip(members, super()._loglikelihood_tokens(plain, disable_tqdm=True), strict=True))

    def _recalled(self, requests: Requests) -> dict[int, Answer]:
        if self.journal is None:
            return {}
        found = {k: self.journal.get(self._key(requests, k)) for k in range(len(requests))}
        return {k: (value["logprob"], value["greedy"]) for k, value in found.items() if value is not None}

    def _record(self, answers: dict[int, Answer], requests: Requests) -> None:
        if self.journal is not None:
            self.journal.put_all(
                {self._key(requests, k): {"logprob": logprob, "greedy": greedy} for k, (logprob, greedy) in answers.items()}
            )

    def _key(self, requests: Requests, k: int) -> str:
        return request_key(self.digest, requests.tokens[k], int(requests.scored[k]))

    def _refuse_nan(self, answers: dict[int, Answer], distinct: Requests, requests: Sequence[Request]) -> None:
        for k, (logprob, _) in answers.items():
            if np.isnan(logprob):
                number = int(np.flatnonzero(distinct.place == k)[0])
                raise RunError(
                    f"{_name(requests[number], number)}: the model gives NaN; look for weights that are not finite (a run that"
                    " diverged) or use a wider dtype; batches before this one are kept where there is a journal"
                )


def _members(batch: list[Span]) -> list[int]:
    """The requests of a batch, by number."""
    return [k for span in batch for k in range(span.low, span.high)]


def _answers(packed: Packed, logprob_S: torch.Tensor, greedy_S: torch.Tensor) -> dict[int, Answer]:
    """Sum the log-probabilities of each request's tokens; greedy when all of them are."""
    counts = packed.counts.tolist()
    parts = zip(packed.requests.tolist(), logprob_S.split(counts), greedy_S.split(counts), strict=True)
    return {k: (float(logprob.sum()), bool(greedy.all())) for k, logprob, greedy in parts}


def _name(request: Request, number: int) -> str:
    text = f", continuation {request[0][1]!r:.60}" if request[0] else ""
    return f"scoring request {number}{text}"


def _tolerance(dtype: torch.dtype, logprob: float) -> float:
    """How far two exact ways to compute a log-probability may be apart; a wrong mask is apart by more."""
    relative, absolute = (1e-4, 1e-3) if dtype in (torch.float32, torch.float64) else (0.05, 0.5)
    return relative * abs(logprob) + absolute


def fast_dtype(device: torch.device | str | None = None) -> torch.dtype:
    """bfloat16 where a matrix product in it is at least 1.3 times as fast as in float32, else float32.

    `device` defaults to the GPU where there is one, else the CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    wide, narrow = (_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if 1.3 * narrow <= wide else torch.float32


def _seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Best of three products of square matrices, after a warm-up."""
    size = 512 if device.type == "cpu" else 4096
    a, times = torch.ones(size, size, device=device, dtype=dtype), []
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - begin)
    return min(times[1:])
