"""Pages that nobody writes twice: those of the repository, and one for every method from its card.

mkdocs calls the `on_...` functions; `pages()` needs no mkdocs, so that tests can read what it makes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WRITTEN = {  # page -> the file that it shows
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "log.md": "experiments/LOG.md",
    "quickstart.md": "experiments/quickstart/README.md",
    "llama2-7b.md": "experiments/llama2-7b/README.md",
    "tasks.md": "evals/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
ITEM = re.compile(r"(?:[-*]|\d+\.) ")
FENCE = re.compile(r"`{3,}")


def pages() -> dict[str, str]:
    """Page (`methods/ewc.md`) -> its Markdown."""
    from cltk.mitigate import MITIGATORS, catalog

    cards = catalog.cards()
    made = {page: shown((ROOT / file).read_text(encoding="utf-8")) for page, file in WRITTEN.items()}
    made["methods/index.md"] = index(cards)
    return made | {f"methods/{name}.md": method(card, MITIGATORS[name].__name__) for name, card in cards.items()}


def shown(text: str) -> str:
    """A README as mkdocs wants it: lists open after an empty line, `R[t][i]` is no link, named files link to their pages."""
    lines, fence = [""], ""
    for line in text.splitlines():
        ticks = FENCE.match(line)
        if ticks and fence in ("", line):
            fence = "" if fence else ticks[0]
        above = lines[-1]
        if not fence and ITEM.match(line) and above and not (ITEM.match(above) or above.startswith("  ")):
            lines.append("")
        lines.append(line if fence or line.startswith("    ") else _linked(line.replace("][", "]\\[")))
    return "\n".join(lines[1:]) + "\n"


def _linked(line: str) -> str:
    for page, file in WRITTEN.items():
        line = line.replace(f"`{file}`", f"[`{file}`]({page})")
    return re.sub(r"(?<!\[)`cltk methods`", "[`cltk methods`](methods/index.md)", line)


def method(card: Any, cls: str) -> str:
    """A card, and the class behind it."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", card.markdown())
    options = f"{{heading: cltk.{cls}, toc_label: {cls}, members: false}}"
    return f"{text}\n## In Python\n\n::: cltk.mitigate.{cls}\n    options: {options}\n"


def index(cards: dict[str, Any]) -> str:
    """All methods, a table a family."""
    from cltk.mitigate.catalog import FAMILIES

    parts = [
        "# Methods\n\nEach page is the card that `cltk methods NAME` prints, with the arguments of its class. Methods compose"
        " in the order of the list; strength 0 is none, bit for bit. Which to try first: [Mitigate](../guides/mitigate.md).\n"
    ]
    for family in FAMILIES:
        rows = [
            f"| [`{name}`]({name}.md) | {_cell(card.line)} | {_cell(card.source)} | {_cell(card.time)} | {_cell(card.memory)} |"
            for name, card in cards.items()
            if card.family == family
        ]
        heads = "| name | what it does | source | extra time | extra memory |\n| --- | --- | --- | --- | --- |\n"
        parts.append(f"## {family.capitalize()}\n\n{heads}" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def on_config(config: Any) -> Any:
    """The methods' pages in the navigation, by family."""
    from cltk.mitigate.catalog import FAMILIES, cards

    found = cards()
    families = [
        {family.capitalize(): [{name: f"methods/{name}.md"} for name, card in found.items() if card.family == family]}
        for family in FAMILIES
    ]
    for entry in config.nav:
        if isinstance(entry, dict) and "Methods" in entry:
            entry["Methods"] = ["methods/index.md", *families]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Every made page, as if it lay in docs/."""
    from mkdocs.structure.files import File

    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    return files
