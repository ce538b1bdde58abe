"""Token rows that are read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from cltk.data.readers import Row
from cltk.data.rows import token_row


class TokenRows(Sequence[Row]):
    """Rows that hold `input_ids`, as lists, each read when it is asked for: a memory on disk stays there."""

    def __init__(self, rows: Any, where: str, size: int) -> None:
        self.rows, self.where, self.size = rows, where, size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        index = range(self.size)[index]
        return token_row(self.rows[index], f"{self.where}, row {index}")
