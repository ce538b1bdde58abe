"""The documentation site: a page a method, links that lead somewhere, blocks that run, nothing from a network."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import Block, blocks

import cltk
from cltk.mitigate import MITIGATORS, catalog
from tests import forks

ROOT = Path(cltk.__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = [
    ("measure", "gate"),
    ("models",),
    ("compare",),
    ("judge",),
    ("mitigate",),
    ("run", "report"),
    ("clusters", "search"),
]  # those of one line share a folder


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("cltk_docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def site() -> dict[str, str]:
    """Every page by its path in the site, as Markdown."""
    written = {path.relative_to(DOCS).as_posix(): path.read_text() for path in DOCS.rglob("*.md")}
    made = hooks().pages()
    assert not set(written) & set(made)
    return written | made


def without_code(text: str) -> str:
    for block in blocks(text):
        text = text.replace(block.code, "\n")
    return re.sub(r"`[^`\n]+`", "code", text)


def test_every_card_has_a_page_and_a_place_in_the_table() -> None:
    index = site()["methods/index.md"]
    for name, card in catalog.cards().items():
        page = site()[f"methods/{name}.md"]
        assert card.line in page
        assert card.text in re.sub(r"\[([^\]]+)\]\(https://arxiv\.org/abs/[^)]+\)", r"\1", page)  # numbers become links
        assert f"::: cltk.mitigate.{MITIGATORS[name].__name__}\n" in page
        assert index.count(f"[`{name}`]({name}.md)") == 1


def test_every_public_name_is_in_the_reference() -> None:
    reference = site()["reference.md"]
    methods = {cls.__name__ for cls in MITIGATORS.values()}
    missing = [name for name in cltk.__all__ if name not in methods and f"cltk.{name}" not in reference]
    assert missing == ["__version__"]


@pytest.mark.parametrize("page", sorted(site()))
def test_internal_links_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(site()[page])):
        if "://" not in target and not target.startswith("#"):
            assert posixpath.normpath(posixpath.join(posixpath.dirname(page), target.split("#")[0])) in site(), target


def test_what_the_navigation_names_exists() -> None:
    def leaves(node: Any) -> list[str]:
        children = node.values() if isinstance(node, dict) else node
        return [node] if isinstance(node, str) else [leaf for child in children for leaf in leaves(child)]

    named = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(page for page in site() if not page.startswith("methods/") or page == "methods/index.md")


def test_a_readme_is_shown_as_a_hub_shows_it() -> None:
    text = "of rows:\n- R[t][i]\n- `README.md`\n  more\n- last\n````markdown\n- x\n```yaml\na:\n- y\n```\n````\nand\n1. z\n"
    shown = text.replace("rows:\n", "rows:\n\n").replace("and\n", "and\n\n").replace("R[t][i]", "R[t]\\[i]")
    assert hooks().shown(text) == shown.replace("`README.md`", "[`README.md`](index.md)")


def test_blocks_are_found_with_their_titles() -> None:
    text = '```bash\nls\n```\n````md title="a/b.md"\n```yaml\nx: 1\n```\n````\n'
    assert blocks(text) == [Block("bash", "", "ls\n"), Block("md", "a/b.md", "```yaml\nx: 1\n```\n")]


@pytest.mark.slow
@pytest.mark.parametrize("guides", GUIDES, ids=["-".join(guides) for guides in GUIDES])
def test_guides_run(guides: tuple[str, ...], tmp_path: Path) -> None:
    named = [name for name in guides if name != "search" or importlib.util.find_spec("optuna")]
    files = [str(DOCS / "guides" / f"{name}.md") for name in ("index", *named)]
    (tmp_path / "evals").symlink_to(ROOT / "evals")  # the clone's, with its examples
    environment = {**os.environ, "CLTK_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, str(Path(__file__).with_name("blocks.py")), *files]
    done = forks.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]


def test_all_guides_are_run() -> None:
    assert {path.stem for path in (DOCS / "guides").glob("*.md")} == {"index", *(guide for one in GUIDES for guide in one)}


class Fetched(HTMLParser):
    """What a browser would fetch by itself from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = {"link": ("href",), "a": (), "form": ()}.get(tag, ("src", "srcset", "href", "data", "poster"))
        self.found += [f"<{tag} {key}={value}>" for key, value in attributes if key in names and remote(value or "")]


def remote(address: str) -> bool:
    return re.match(r"\s*(https?:)?//", address) is not None


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install cltk-forgetting[docs]")
    pytest.importorskip("mkdocstrings", reason="pip install cltk-forgetting[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    html = sorted((tmp_path / "site").rglob("*.html"))
    assert len(html) >= len(site())
    for file in html:
        page = Fetched()
        page.feed(file.read_text())
        assert not page.found, f"{file.name}: {page.found}"
    for file in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", file.read_text()), file.name
    assert "strength/2 sum_i F_i" in (tmp_path / "site" / "methods" / "ewc.html").read_text()
    assert not list((tmp_path / "site").rglob("hooks.py"))
