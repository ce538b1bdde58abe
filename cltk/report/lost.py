"""Before and after, task by task: how many documents were kept, lost and gained, and the lost ones themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cltk.report.documents import Document, read_documents
from cltk.report.effects import Effect
from cltk.report.figures import MOST
from cltk.report.pairs import Flip, Study, retained
from cltk.report.sources import Entry
from cltk.run.records import RECORD

LISTED = 25  # documents listed a method and task; scores.json has all


@dataclass(frozen=True)
class Flow:
    """One task of one method."""

    method: str
    effect: Effect
    flips: list[Flip] | None  # None without per-document scores
    texts: dict[str, Document]  # by hash: those of the listed documents that samples beside the record hold
    seeds: int

    @property
    def kept(self) -> float:
        """Documents right before and after."""
        return self.effect.n * self.effect.pre - (self.effect.lost or 0)

    @property
    def listed(self) -> list[Flip]:
        return (self.flips or [])[:LISTED]

    def share(self, count: float | None) -> float:
        return 100 * (count or 0) / self.effect.n


def flows(study: Study) -> list[tuple[str, list[Flow]]]:
    """(task, a flow for each of the first methods)."""
    shown = study.summaries[:MOST]
    done = []
    for task in retained(shown):
        found = []
        for i, one in enumerate(shown):
            if (effect := one.on(task)) is not None:
                flips = study.flips(i, task)
                texts = _texts(one.entries, task, (flips or [])[:LISTED])
                found.append(Flow(one.label, effect, flips, texts, len(one.entries)))
        done.append((task, found))
    return done


def _texts(entries: Sequence[Entry], task: str, flips: Sequence[Flip]) -> dict[str, Document]:
    """Each document as the first run that lost it answered it."""
    found: dict[str, Document] = {}
    for entry in entries:
        wanted = {flip.document for flip in flips if flip.lost[0] == entry.record.get("seed", 0)}
        if wanted and entry.path is not None and entry.path.name == RECORD:
            found |= read_documents(entry.path.parent, task, wanted)
    return found
