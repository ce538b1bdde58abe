"""Whether a model may be scored on trees: found out before its first answer, whatever the precision.

Sums of a request's log-probabilities that are compared within the rounding of 16 bits would let a state-space or an ALiBi model
pass. So three questions are asked whose answers are yes or no in every precision, on one small tree of random tokens:

    the gradient of a branch by the embeddings of another branch is exactly 0   (no convolution, no state, no linear attention)
    other position_ids give other logits                                        (no bias by index: ALiBi)
    no boolean mask of the model's own but "every token before"                 (no window cut by index: GPT-Neo)

and the log-probabilities of the branches, from the tree and from rows, must agree. What changes with the length of a request is
read from the configuration (rotary factors that switch), and `scoring.py` compares again with the largest trees it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cltk.measure.prefix_tree import Packed, Requests, Span, pack
from cltk.measure.tree_forward import TreeForward, UnsupportedModelError, ancestors

LOOSE = 4.0  # distances of trees from rows, in those of rows from rows
BRANCHES, LENGTH = 3, 8  # of the tree that is tried; its context is as long as a branch
WIDE = (torch.float32, torch.float64)
EXTRA = 5  # tokens behind a row in the second way to batch rows
SWITCHING = ("longrope", "su", "dynamic")  # rotary factors that depend on the longest position of a forward


def prove(trees: TreeForward, longest: int) -> None:
    """Raise UnsupportedModelError unless trees give what rows give. `longest`: most input tokens that a request may have."""
    model = trees.model
    _own_windows(model)
    length = min(LENGTH, (longest - EXTRA - 1) // 2)
    if length < 2:
        raise UnsupportedModelError(f"{longest} positions are too few to try a tree")
    trees.forget()
    try:
        requests = _requests(model, length)
        tree, behind = (_packed(requests, start) for start in (0, length))
        _independent(trees, tree)
        with torch.inference_mode():
            _positions_matter(trees, tree)
            rows = _row_log_probs(model, requests, 0)
            padded = rows if model.dtype in WIDE else _row_log_probs(model, requests, EXTRA)
            for packed in (tree, behind):
                check_close(trees.log_probs(packed)[0].numpy(), rows, padded, model.dtype)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError((str(error).strip().split("\n") or [""])[0] or type(error).__name__) from error
    finally:
        trees.forget()


def switch_length(config: Any) -> int | None:
    """Tokens beyond which the model's rotary embedding takes other factors for all positions; None where it does not."""
    rope = [value for node in _nodes(config.to_dict()) for name, value in node.items() if str(name).startswith("rope_")]
    found = [node for value in rope for node in _nodes(value) if node.get("rope_type", node.get("type")) in SWITCHING]
    if not found:
        return None
    own = [node["original_max_position_embeddings"] for node in found if node.get("original_max_position_embeddings")]
    text = config.get_text_config()
    rest = getattr(text, "original_max_position_embeddings", None) or getattr(text, "max_position_embeddings", None)
    return int(min(own)) if own else int(rest) if rest else 0


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)


def check_close(mine: Any, rows: Any, other: Any, dtype: torch.dtype) -> None:
    """Raise UnsupportedModelError where log-probabilities from trees are not those of rows.

    In 32 bits and more every one must agree to 1e-3 + 1e-4 |log p|. With fewer bits two ways to batch the same rows differ too:
    the median distance may be `LOOSE` times theirs (`other`), or as many roundings of a log-probability where theirs is none.
    The median, for one rounding may send a token to another expert, on either side, which moves its log-probability at will.
    """
    mine, rows, other = (np.asarray(values, dtype=np.float64) for values in (mine, rows, other))
    finite = np.isfinite(rows) & np.isfinite(mine)
    if not np.array_equal(mine[~finite], rows[~finite], equal_nan=True):
        raise UnsupportedModelError("log-probabilities that are not finite on one side alone")
    mine, rows, other = mine[finite], rows[finite], other[finite]
    distance, size = np.abs(mine - rows), np.abs(rows)
    if dtype in WIDE:
        worst = int(np.argmax(distance - 1e-4 * size)) if len(distance) else 0
        if len(distance) and distance[worst] > 1e-3 + 1e-4 * size[worst]:
            raise UnsupportedModelError(f"log-probability {mine[worst]:.6f} against {rows[worst]:.6f}")
        return
    if not len(distance):
        return
    apart, noise, rounding = (
        float(np.median(x)) for x in (distance, np.abs(other - rows)[finite], size * torch.finfo(dtype).eps / 2)
    )
    if apart > LOOSE * max(noise, rounding):
        raise UnsupportedModelError(
            f"log-probabilities are {apart:.3g} apart where two ways to batch rows are {noise:.3g} apart"
        )


def _own_windows(model: Any) -> None:
    for name, buffer in model.named_buffers():
        mask = buffer.dtype in (torch.bool, torch.uint8) and buffer.ndim >= 2 and buffer.shape[-1] == buffer.shape[-2] > 1
        if mask and not torch.equal(buffer.bool(), torch.ones_like(buffer, dtype=torch.bool).tril()):
            raise UnsupportedModelError(f"it has an attention window of its own ({name})")


def _requests(model: Any, length: int) -> Requests:
    """Random tokens: one context, and branches that begin differently."""
    config = model.config.get_text_config()
    special = {getattr(config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    usable = np.array(
        [token for token in range(min(4096, model.get_input_embeddings().weight.shape[0])) if token not in special]
    )
    if len(usable) < BRANCHES:
        raise UnsupportedModelError("its vocabulary is too small to try a tree")
    draw = np.random.RandomState(0)  # of its own: the caller's random states stay
    context = draw.choice(usable, length + 1)
    heads = draw.choice(usable, BRANCHES, replace=False)
    return Requests([([*context, head, *draw.choice(usable, length)], length) for head in heads])


def _packed(requests: Requests, start: int) -> Packed:
    return pack(requests, [Span(0, len(requests), requests.nodes(0, len(requests), start), start)])


def _independent(trees: TreeForward, packed: Packed) -> None:
    """The last branch must not depend on the others: its gradient by their embeddings is 0, by its own it is not."""
    kept: list[Tensor] = []

    def leaf(_: Any, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1] * 1  # some models scale their embeddings in place

    last = int(packed.counts[-1])
    branch = torch.from_numpy(packed.index[packed.slots[-last:]])
    handle = trees.model.get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = trees.tree_logits(packed, lambda hidden: hidden.flatten(0, 1)[branch.to(hidden.device)])
            if bool(logits.isnan().any()):
                return  # and so will every answer be, which is reported
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.device)
            finite = logits.float().masked_fill(logits.isinf(), 0.0)  # a model may exclude tokens
            (gradient_BTD,) = torch.autograd.grad((finite * weights).mean(), kept[:1])
    finally:
        handle.remove()
    seen_T = (gradient_BTD[0] != 0).any(-1).cpu()
    own_T = ancestors(torch.from_numpy(packed.ends), 0)[0, branch].any(0)
    if bool((seen_T & ~own_T).any()):
        raise UnsupportedModelError("it mixes tokens in other ways than by masked attention")
    if not bool(seen_T[branch].any()):
        raise UnsupportedModelError("its logits do not depend on its input embeddings")


def _positions_matter(trees: TreeForward, packed: Packed) -> None:
    """A model that ignores position_ids takes a token's place from its index, and in a tree that is another."""
    last = int(packed.counts[-1])
    branch = torch.from_numpy(packed.index[packed.slots[-last:]])
    moved = packed.positions.copy()
    moved[0, branch] -= 1
    logits = [
        trees.tree_logits(replace(packed, positions=positions), lambda hidden: hidden.flatten(0, 1)[branch.to(hidden.device)])
        for positions in (packed.positions, moved)
    ]  # both in the same way, so that they are equal to the bit where positions do not matter
    if torch.equal(*logits):
        raise UnsupportedModelError("it does not read position_ids")


def _row_log_probs(model: Any, requests: Requests, extra: int) -> np.ndarray:
    """[S] log-probabilities of the scored tokens from plain rows: all at once, or one by one with `extra` tokens behind."""
    rows = torch.from_numpy(np.stack(requests.tokens)).to(model.device)
    scored = int(requests.scored[0])
    inputs = [rows[:, :-1]] if not extra else list(torch.nn.functional.pad(rows[:, :-1], (0, extra), value=3).split(1))
    logits = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in inputs])
    logp = logits[:, rows.shape[1] - 1 - scored : rows.shape[1] - 1].log_softmax(-1, dtype=torch.float32)
    return logp.gather(-1, rows[:, -scored:, None]).double().flatten().cpu().numpy()
