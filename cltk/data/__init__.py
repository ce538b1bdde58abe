"""What goes in: rows of files and data sets, texts and tokens, and the pinned assets."""

from cltk.data.memories import memory_rows
from cltk.data.pairs import tokenize_pairs
from cltk.data.readers import Row, locate, read_rows
from cltk.data.rows import (
    IGNORED,
    Collator,
    NoText,
    as_text,
    blocks,
    digest_rows,
    fill,
    pad_id,
    split_by,
    text_of,
    token_row,
)

__all__ = [
    "IGNORED", "Collator", "NoText", "Row", "as_text", "blocks", "digest_rows", "fill", "locate", "memory_rows", "pad_id",
    "read_rows", "split_by", "text_of", "token_row", "tokenize_pairs",
]  # fmt: skip
