"""The method cards: `cards/NAME.md`, one a method. YAML front matter between two lines of ---, then Markdown."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from cltk.errors import InputError

FOLDER = Path(__file__).parent / "cards"
FAMILIES = ("data", "loss", "gradient", "update", "parameters", "weights", "rates")
ENGINES = ("Trainer", "SFTTrainer", "DPOTrainer", "KTOTrainer", "GRPOTrainer", "loop", "DDP", "FSDP2", "DeepSpeed")


@dataclass(frozen=True)
class Card:
    """What a method is, where it comes from, and what it costs."""

    name: str  # the key in MITIGATORS
    line: str  # one sentence
    source: str  # authors, year, arXiv number or venue
    family: str  # one of FAMILIES: what the method edits
    time: str  # beyond plain AdamW fine-tuning, in words
    memory: str  # likewise
    engines: tuple[str, ...]  # out of ENGINES
    composes: str  # what goes well with it, or cannot
    text: str  # Markdown: formula, settings, when not to use it, examples

    def markdown(self) -> str:
        """The whole card as one Markdown document."""
        facts = {"Source": self.source, "Family": self.family, "Extra time": self.time, "Extra memory": self.memory}
        facts |= {"Engines": ", ".join(self.engines), "Composes": self.composes}
        listed = "\n".join(f"- **{key}**: {value}" for key, value in facts.items())
        return f"# {self.name}\n\n{self.line}\n\n{listed}\n\n---\n\n{self.text}\n"


def read(path: Path) -> Card:
    """The card in this file.

    Raises:
        InputError: no front matter, or a key of it is missing, unknown or of the wrong kind.
    """
    begin, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    front, closed, text = rest.partition("\n---\n")
    if begin or not closed:
        raise InputError(f"{path}: a card begins with YAML between two lines of ---")
    try:
        facts = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: the front matter is not YAML: {' '.join(str(error).split())}") from None
    return Card(name=path.stem, text=text.strip("\n"), **_checked(facts, path))


def _checked(facts: Any, path: Path) -> dict[str, Any]:
    wanted = [field.name for field in fields(Card) if field.name not in ("name", "text")]
    if not isinstance(facts, dict) or set(facts) != set(wanted):
        differs = sorted(set(wanted) ^ set(facts)) if isinstance(facts, dict) else wanted
        raise InputError(f"{path}: missing or unknown in the front matter: {', '.join(map(str, differs))}")
    engines = facts["engines"]
    if not isinstance(engines, list) or not engines or set(map(str, engines)) - set(ENGINES):
        raise InputError(f"{path}: engines is {engines!r}; give a list out of {', '.join(ENGINES)}")
    texts = {key: value for key, value in facts.items() if key != "engines"}
    if wrong := [key for key, value in texts.items() if not isinstance(value, str) or not value.strip()]:
        raise InputError(f"{path}: {wrong[0]} must be text; quote it")
    if facts["family"] not in FAMILIES:
        raise InputError(f"{path}: family is {facts['family']!r}; give one of {', '.join(FAMILIES)}")
    return {**{key: " ".join(value.split()) for key, value in texts.items()}, "engines": tuple(engines)}


def cards() -> dict[str, Card]:
    """Every card by its method's name, in alphabetical order."""
    return {path.stem: read(path) for path in sorted(FOLDER.glob("*.md"))}


def card(name: str) -> Card:
    """One card. Raises InputError for a name that has none, with the nearest that has."""
    path = FOLDER / f"{name}.md"
    known = sorted(file.stem for file in FOLDER.glob("*.md"))
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"methods: no method {name!r}; {hint}")
    return read(path)


def table(width: int = 80) -> Any:
    """All cards as a rich table: six columns where there is room for them, else one block of lines a method."""
    from rich import box
    from rich.table import Table

    wide = width >= 150
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=wide, show_lines=wide)
    for column in ("name", "what it does", "source", "extra time", "extra memory", "engines") if wide else ("name", "card"):
        shown.add_column(column, no_wrap=column == "name")
    for found in cards().values():
        engines = ", ".join(found.engines)
        if wide:
            shown.add_row(found.name, found.line, found.source, found.time, found.memory, engines)
        else:
            lines = [found.line, found.source, f"time: {found.time}", f"memory: {found.memory}", f"engines: {engines}"]
            shown.add_row(found.name, "\n".join([*lines, ""]))
    return shown
