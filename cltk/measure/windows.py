"""Token rows longer than a model reads at once, in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cltk.data.readers import Row
from cltk.data.rows import IGNORED

WINDOW = 1024  # tokens that are read at once, where the model has so many positions


def counted(row: Row) -> int:
    """Tokens of the row that are predicted and count."""
    return sum(label != IGNORED for label in labels_of(row)[1:])


def labels_of(row: Row) -> list[int]:
    """The row's labels: its tokens, where it has none."""
    return list(row["labels"] if "labels" in row else row["input_ids"])


def positions(model: Any) -> int:
    """Tokens that are read at once: `WINDOW`, or the model's positions where it has fewer."""
    return min([WINDOW, *named_positions(model.config)])


def named_positions(config: Any) -> list[int]:
    """The positions that a config says the model has, under any of their names."""
    config = config.get_text_config()
    named = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return [size for size in named if isinstance(size, int) and size > 1]


def windows(row: Row, size: int) -> list[Row]:
    """A row longer than `size` tokens as rows of at most `size`, every token counted once, as lm-eval's rolling windows.

    Each window begins with the last token of the one before; the last one reads as much before it as fits.
    """
    ids, labels = row["input_ids"], labels_of(row)
    if len(ids) <= size:
        return [row]
    out, done = [], 1  # tokens that are predicted, or have nothing before them
    while done < len(ids):
        end = min(done + size - 1, len(ids))
        start = end - size
        fresh = [IGNORED] * (done - start) + labels[done:end]
        out.append({"input_ids": ids[start:end], "labels": fresh})
        done = end
    return [one for one in out if counted(one)]


def by_windows(rows: Sequence[Row], size: int, score: Callable[[list[Row]], Sequence[float]]) -> list[float]:
    """Mean over each row's counted tokens of what `score` gives as means over those of its windows."""
    parts = [windows(row, size) for row in rows]
    values = iter(score([one for part in parts for one in part]))
    out = []
    for part in parts:
        counts = [counted(one) for one in part]
        means = [next(values) for _ in part]
        out.append(means[0] if len(part) == 1 else sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts))
    return out
