"""lm-eval's Hugging Face model, scoring each shared context once. Scores equal the stock ones up to rounding.

Tokenisation, truncation and chat templates are lm-eval's own code (the class is an `HFLM`); only the forward passes differ.
`prefix_tree.py` plans them, `tree_forward.py` runs them, `tree_proof.py` says which models they hold for, `generation.py` has
the texts.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from cltk.errors import InputError
from cltk.forward import products
from cltk.measure import generation, limits, named
from cltk.measure.batching import Answer, Batch, answers_of, stock_batches, tree_batches
from cltk.measure.journal import Journal, ModelJournal
from cltk.measure.limits import Request
from cltk.measure.named import Tell
from cltk.measure.prefix_tree import Packed, Requests, Span, pack
from cltk.measure.settings import fast_dtype, options
from cltk.measure.tree_forward import TreeForward, UnsupportedModelError
from cltk.measure.tree_proof import WIDE, check_close, prove, switch_length
from cltk.ranks import gathered, ranks

__all__ = ["PrefixLM", "fast_dtype", "options"]
log = logging.getLogger(__name__)
T = TypeVar("T")
CHECKED = 4  # requests of a batch that are compared with the stock path


class PrefixLM(HFLM):
    """`HFLM` with shared prefixes, length-sorted batches and logits only where a token is scored.

    log p(continuation | context) = sum over continuation tokens of log softmax(logits)[token], in nats.

    `tree_proof.py` finds out before the first answer whether the model can run on trees, and the largest trees are compared
    with the stock path on a few requests. A model that fails is scored by the stock path, with one warning; nothing that trees
    gave is used, and the journal keeps the two apart.

    A name instead of a model is loaded by lm-eval's own code, and where lm-eval has several processes share the documents they
    do not share requests here too: `--model cltk` of lm-eval's command line (`cltk.lm_eval`).

    Args:
        pretrained: A transformers causal language model, on its device and in its dtype, put in eval mode; or what HFLM takes
            (a folder, a hub id), or asset:NAME.
        tokenizer: Its tokenizer. One without a padding token is copied before lm-eval gives it one.
        max_tokens: Padded tokens a forward; "auto": 1024 on the CPU, where caches are small, 16384 elsewhere.
        batch_size: Of the stock path and of generation; "auto": 8 on the CPU, 32 elsewhere, and 4 times that for texts.
        journal: Where answers and generated texts are kept and looked up; needs `digest`.
        digest: Of all that decides an answer (`cltk.measure.identity`), part of every journal key.
        progress: Called after every batch with (requests done, requests in all, tokens computed so far).
        trees: False for lm-eval's own forward passes.
        settings: All else that HFLM takes (peft, revision, max_length, ...), with its meaning. `device` is the GPU where there
            is one and the CPU elsewhere, when not given.

    Raises:
        InputError: A journal without a digest, a batch size that is none, thinking without an end.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        max_tokens: int | str = "auto",
        batch_size: int | str = "auto",
        journal: Journal | None = None,
        digest: str = "",
        progress: Callable[[int, int, int], None] | None = None,
        trees: bool = True,
        **settings: Any,
    ) -> None:
        if journal is not None and not digest:
            raise InputError("PrefixLM: a journal needs `digest`, the digest of what decides an answer, in its keys")
        batch_size = named.checked(batch_size, settings)
        if isinstance(pretrained, str):
            pretrained, tokenizer, settings = named.located(pretrained, tokenizer, settings)
        elif tokenizer is not None and getattr(tokenizer, "pad_token_id", None) is None:
            tokenizer = copy.deepcopy(tokenizer)  # HFLM adds a padding token
        start = 1 if batch_size == "auto" else batch_size  # until the device is known
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=start, **settings)
        rows, tokens = (8, 1024) if self.device.type == "cpu" else (32, 16384)
        self.max_tokens = tokens if max_tokens == "auto" else int(max_tokens)
        self.rows = 4 * rows if batch_size == "auto" else batch_size
        self.batch_size_per_gpu = rows if batch_size == "auto" else batch_size
        self.journal, self.digest, self.progress, self._kept = journal, digest, progress, ModelJournal(journal, digest)
        self.named = isinstance(pretrained, str)
        if reason := named.left_to_stock(settings) if trees else "":
            self._warn(reason)
        usable = trees and not reason and self.backend == "causal" and not self._kept.refused
        self.decodes, self._trees = usable, TreeForward(self.model) if usable else None
        self._proven = False
        self._checked: dict[bool, tuple[int, int]] = {}  # behind a prefix -> (its length, nodes) of the largest trees compared

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[Answer]:
        """(logprob, greedy) of every (context, continuation). Raises InputError for what lm-eval cannot score."""
        limits.check_pairs(self, requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in nats: the sum over lm-eval's disjoint windows of at most `max_length` tokens."""
        limits.check_prefix(self, "rolling log-likelihood")
        windows, counts = limits.windows(self, [request.args[0] for request in requests])
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = [sum(next(answers)[0] for _ in range(count)) for count in counts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """(logprob, greedy) of every request. Batches are composed from all requests, so a resumed run repeats them."""
        if self.backend != "causal":
            return super()._loglikelihood_tokens(list(requests), disable_tqdm=disable_tqdm, override_bs=override_bs)
        distinct = Requests([limits.truncated(request, n, self.max_length) for n, request in enumerate(requests)])
        limits.check_tokens(self.model, distinct, requests)
        if cut := sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests):
            log.warning(f"{cut} of {len(requests)} requests are longer than {self.max_length} tokens: cut from the left")
        self.model.eval()
        trees = self._trees is not None and len(distinct) > 0 and self._can_run_on_trees(int(distinct.length.max()))
        with named.bar(len(requests), disable_tqdm or not self.named or self.rank != 0) as drawn:
            tell = self.progress or drawn
            try:
                answers = self._scored(distinct, requests, trees, tell)
            except UnsupportedModelError as error:  # whatever trees gave until now is in no answer
                self._refuse(str(error))
                self._kept.refuse()
                answers = self._scored(distinct, requests, False, tell)
        results = [answers[int(k)] for k in distinct.place]
        for (text, _, _), answer in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return results

    def _scored(self, distinct: Requests, requests: Sequence[Request], trees: bool, tell: Tell) -> dict[int, Answer]:
        """The answers of all distinct requests, from the journal or from batches that the ranks share."""
        copies = np.bincount(distinct.place, minlength=len(distinct))
        answers = self._kept.get(distinct, trees)
        done = tokens = 0
        if self._trees is not None:
            self._trees.forget()
        rank, world = (0, 1) if self.named else ranks()
        planned = tree_batches(distinct, self.max_tokens) if trees else list(stock_batches(distinct, self.batch_size))
        with torch.inference_mode(), products.fast(self.model) if trees else nullcontext():  # stock stays stock, to the bit
            for start in range(0, len(planned), world):  # every rank does one batch, then all know the answers of all
                turn = planned[start : start + world]
                todo = [any(k not in answers for k in batch.members) for batch in turn]
                fresh = self._batch(distinct, turn[rank]) if rank < len(turn) and todo[rank] else {}
                for found in self._gathered(fresh) if any(todo) else ():
                    if isinstance(found, str):
                        raise UnsupportedModelError(found)
                    limits.check_finite(found, distinct, requests)
                    self._kept.put(found, distinct, trees)
                    answers |= {k: answer for k, answer in found.items() if k not in answers}
                tokens += sum(batch.size for batch, due in zip(turn, todo, strict=True) if due)
                done += sum(int(copies[batch.members].sum()) for batch in turn)
                tell(done, len(requests), tokens)
        return answers

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The text of every request: greedy ones decoded together (`decoding.py`), others by lm-eval's own generation."""
        limits.check_room(self, requests)
        return generation.generate(self, super().generate_until, requests, disable_tqdm)

    def proven(self, longest: int) -> TreeForward | None:
        """The model on trees, if it gives what rows give for up to `longest` tokens."""
        return self._trees if self._trees is not None and self._can_run_on_trees(longest) else None

    def _gathered(self, found: T) -> list[T]:
        return [found] if self.named else gathered(found)

    def _can_run_on_trees(self, longest: int) -> bool:
        """Whether trees give stock's answers for requests of up to `longest` tokens; found out before the first answer."""
        assert self._trees is not None
        limit = switch_length(self.model.config)
        if limit is not None and longest > limit:
            self._warn(f"its rotary embedding changes beyond {limit} tokens, and a request has {longest}")
            return False
        if self._proven:
            return True
        reason = ""
        try:
            prove(self._trees, self.max_length)
        except UnsupportedModelError as error:
            reason = str(error) or type(error).__name__
        reasons = [found for found in self._gathered(reason) if found]  # the ranks must go one way
        if reasons:
            self._refuse(reasons[0])
        self._proven = not reasons
        return self._proven

    def _refuse(self, reason: str) -> None:
        self._trees = None
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        what = f"{type(self.model).__name__}: contexts are not shared, lm-eval's own scoring is used"
        warnings.warn(f"{what}: {reason}", stacklevel=3)

    def _batch(self, requests: Requests, batch: Batch) -> dict[int, Answer] | str:
        """Answers of a batch by request number; or the reason why trees cannot be used."""
        if batch.trees is None:
            return self._stock(requests, batch.members)
        packed = pack(requests, batch.trees)
        behind, size = len(packed.prefix) > 0, (len(packed.prefix), packed.tokens.shape[1])
        before = self._checked.get(behind, (-1, -1))
        try:
            answers = self._tree_answers(requests, batch.trees, packed)
            if (behind or packed.branching) and (size[0] > before[0] or size[1] > before[1]):
                self._compare(requests, packed, answers)
                self._checked[behind] = (max(size[0], before[0]), max(size[1], before[1]))
        except UnsupportedModelError as error:
            return str(error)
        return answers

    def _tree_answers(self, requests: Requests, batch: list[Span], packed: Packed) -> dict[int, Answer]:
        """By one forward; by several of half the size where the device has not the memory."""
        assert self._trees is not None
        try:
            return answers_of(packed, *self._trees.log_probs(packed))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        first, second = (self._tree_answers(requests, half, pack(requests, half)) for half in halves)
        return first | second

    def _compare(self, requests: Requests, packed: Packed, ours: dict[int, Answer]) -> None:
        """Raise UnsupportedModelError where a few requests, those that a wrong mask hits most, disagree with stock."""
        few = packed.requests[np.argsort(-packed.gaps(), kind="stable")[:CHECKED]].tolist()
        stock = self._stock(requests, few)
        other = stock if self.model.dtype in WIDE else {k: self._stock(requests, [k])[k] for k in few}
        mine, rows, again = ([side[k][0] for k in few] for side in (ours, stock, other))
        check_close(mine, rows, again, self.model.dtype)

    def _stock(self, requests: Requests, members: Sequence[int]) -> dict[int, Answer]:
        """The same answers by lm-eval's own code."""
        split = [(requests.tokens[k].tolist(), int(requests.scored[k])) for k in members]
        plain: list[Any] = [(None, tokens[:-scored], tokens[-scored:]) for tokens, scored in split]
        return dict(zip(members, super()._loglikelihood_tokens(plain, disable_tqdm=True), strict=True))
