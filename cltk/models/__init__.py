"""Models by name: where they come from, how they are loaded, adapters on their base, and the digests of all that."""

from cltk.models.digests import FIRST, STORED, config_digest, file_digest, stored_digest, tree_digest
from cltk.models.loading import (
    ADAPTER,
    Spec,
    device,
    is_adapter,
    load_config,
    load_model,
    load_tokenizer,
    locate_model,
    no_bars,
    on,
    unsplit,
)
from cltk.models.origin import Origin

__all__ = [
    "ADAPTER",
    "FIRST",
    "STORED",
    "Origin",
    "Spec",
    "config_digest",
    "device",
    "file_digest",
    "is_adapter",
    "load_config",
    "load_model",
    "load_tokenizer",
    "locate_model",
    "no_bars",
    "on",
    "stored_digest",
    "tree_digest",
    "unsplit",
]
