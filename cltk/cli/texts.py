"""Old text on the command line: a file, or a mapping as in YAML that says how one is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOW = "or a mapping as in YAML: '{%s: user/chats, split: test, revision: v1, mask: last}'"


def is_mapping(text: str) -> bool:
    """Whether an argument is a mapping, and no name."""
    return text.lstrip().startswith("{")


def memory(text: str, option: str = "--memory") -> Any:
    """A path as it is, or the mapping that it says (`cltk.data.opening.Reading`). Raises InputError: not YAML."""
    from cltk.run.yaml import read_value

    return read_value(text, option) if is_mapping(text) else text


def text_tasks(given: Sequence[str], limit: float | None, seed: int = 0) -> list[Any]:
    """The texts of `--text`: files, or mappings with the keys of a text in `evals` of an experiment's YAML.

    Args:
        given: as they were written. Files of one name are told apart by their folders.
        limit: rows of each that says none itself.
        seed: of a sample that it says itself.

    Raises:
        InputError: an unknown key, no such file.
    """
    from cltk.run.config import model_of
    from cltk.run.sources import read_text
    from cltk.run.spec import TextSpec

    entries = [memory(one, "--text") if is_mapping(one) else {"text": one} for one in given]
    specs = [model_of(TextSpec, one, (), lambda _: "--text") for one in entries]
    labels = [one.label for one in specs]
    texts = []
    for spec in specs:
        same = labels.count(spec.label) > 1 and not spec.name
        name = str(Path(spec.text).with_suffix("")) if same else spec.label
        text = read_text(spec, spec.text, name, None if spec.sample else limit)
        texts.append(text if spec.sample is None else text.sampled(spec.sample, seed))
    return texts
