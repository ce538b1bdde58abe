"""What the examples share: the model, the new task's rows, old text, and the options of the command line."""

from __future__ import annotations

import argparse
from typing import Any

from cltk.data import read_rows, tokenize_pairs
from cltk.models import load_model


def options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="asset:smollm2-135m-instruct", help="folder, hub id or asset:NAME")
    parser.add_argument("--new", default="asset:medmcqa/train.jsonl", help="rows with the columns prompt and completion")
    parser.add_argument("--old", default="asset:brown/memory.jsonl", help="text of the old domain")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", default="runs/examples")
    return parser.parse_args()


def prepare(given: argparse.Namespace, rows: int = 80) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The model, its tokeniser, and the new task as text rows."""
    model, tokenizer = load_model(given.model)
    return model, tokenizer, read_rows(given.new)[:rows]


def tokens(rows: list[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Token rows whose loss counts completions only."""
    return tokenize_pairs(rows, tokenizer, prompt="prompt", completion="completion", max_length=256)
