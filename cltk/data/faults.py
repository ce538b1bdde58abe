"""What is wrong with rows, told together once all of them are read: how many, and which are the first."""

from __future__ import annotations

from dataclasses import dataclass, field

from cltk.data.rows import SHOWN, others
from cltk.errors import InputError


@dataclass
class Fault:
    """Rows of one fault: how many, the first of them, what is said of the very first."""

    count: int = 0
    first: list[int] = field(default_factory=list)
    says: str = ""

    def add(self, row: int, says: str) -> None:
        self.says = self.says or says
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(row)


@dataclass
class Faults:
    """The faults of a set of rows, while it is tokenised.

    Args:
        where: how an error names the set.
        max_length: tokens to which rows are cut.
        drop_long: whether rows of which nothing is left are no fault, so long as others are left.
    """

    where: str
    max_length: int = 512
    drop_long: bool = False
    rows: int = 0  # that were read
    kept: int = 0
    without: Fault = field(default_factory=Fault)  # text
    empty: Fault = field(default_factory=Fault)  # completions
    long: Fault = field(default_factory=Fault)
    longest: int = 0  # tokens before the first that counts

    def place(self, row: int) -> str:
        return f"{self.where}, row {row}"

    def too_long(self, row: int, tokens: int) -> None:
        """Nothing that counts is left of a row with so many tokens before it."""
        self.long.add(row, f"{tokens}")
        self.longest = max(self.longest, tokens)

    def check(self) -> None:
        """Raises InputError for the first kind of fault that there is: no text, an empty completion, too long."""
        for fault in (self.without, self.empty):
            if fault.count:
                raise InputError(fault.says + others(fault.first, fault.count, self.rows))
        if self.long.count and (not self.drop_long or not self.kept):
            raise InputError(
                f"{self.place(self.long.first[0])}: nothing of the completion is left after the cut to"
                f" max_length={self.max_length} (the prompt has {self.long.says} tokens; the longest {self.longest})"
                + others(self.long.first, self.long.count, self.rows)
                + "; raise data.max_length"
                + ("" if self.drop_long else ", or leave such rows out (data.drop_long: true)")
            )
