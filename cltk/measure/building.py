"""The random state in which lm-eval builds tasks: all of them first, then their names are asked, which draws too.

A task's name draws from the global state each time it is asked (lm-eval's default for one without), and tasks that shuffle
their documents (gpqa) draw from it as well. So tasks that are built one by one, with questions in between, get other documents
than `simple_evaluate` gives them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cltk.measure.prompting import restore, states


class Building:
    """Around `manager`, whose `load` is called for one name after the other: only what it builds moves the random state."""

    def __init__(self, manager: Any) -> None:
        self.manager, self.build = manager, manager._load_spec
        self.built: list[Any] = []
        self.state = states()
        manager._load_spec = self._built

    def _built(self, spec: Any) -> Any:
        restore(self.state)
        made = self.build(spec)
        self.built += made if isinstance(made, list) else [made]
        self.state = states()
        return made

    def finish(self) -> None:
        """The state as behind one `load` of all names: lm-eval's own questions, asked of what is built."""
        self.manager._load_spec = self.build
        restore(self.state)
        with suppress(ValueError):  # one task in two of them, which is said elsewhere or allowed here
            self.manager.load(self.built)
