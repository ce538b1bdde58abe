from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _allocator_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cltk run` tunes the process's allocator and notes it; the next test must not find that note."""
    from cltk.run import speed

    monkeypatch.setattr(speed, "_allocator", speed._allocator)
