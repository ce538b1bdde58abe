"""In which language an answer is, by langdetect, which draws at random unless it is seeded (Mimino666/langdetect#3)."""

from __future__ import annotations

from typing import Any

import langdetect

langdetect.DetectorFactory.seed = 0


def answered_in(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """acc: the answer is in the document's language; one without words is in none. Kinds of Chinese count as one."""
    try:
        found = langdetect.detect(results[0])
    except langdetect.LangDetectException:
        return {"acc": 0.0}
    return {"acc": float(found.split("-")[0] == doc["language"])}
