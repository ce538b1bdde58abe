"""What the checkers of IFEval and its kin in lm-eval need, found out before weights are loaded, and had without a hub.

They import langdetect, which draws at random unless it is seeded: one text may get two verdicts
(lm-evaluation-harness#4213). They split sentences by nltk's punkt, which they fetch when they are imported; where that fails,
the first answer that needs it stops the run after everything was generated.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from cltk.data import assets
from cltk.errors import InputError

PACKAGES = ("langdetect", "immutabledict", "nltk")
PUNKT = "tokenizers/punkt_tab"
SENTENCES = "nltk-punkt"  # the asset


@cache
def ready(folder: Path) -> None:
    """What the Python in an lm-eval task folder needs is here, and language detection gives a text one verdict.

    Raises:
        InputError: a package is missing, or nltk's data are neither here nor to be fetched.
    """
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
    if "instructions_registry" not in text and "instructions_util" not in text:
        return
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"lm-eval's {folder.name} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed:"
            " pip install 'cltk-forgetting[instruct]'"
        )
    import langdetect

    langdetect.DetectorFactory.seed = 0
    _punkt()


def _punkt() -> None:
    """nltk's sentence splitter: its own where it is installed, else the asset's."""
    import nltk

    try:
        nltk.data.find(f"{PUNKT}/english")
    except LookupError:
        nltk.data.path.append(str(assets.resolve(f"{assets.PREFIX}{SENTENCES}")))
