"""The method cards: complete, true to the code, and shown by `cltk methods`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cltk.cli import main
from cltk.errors import InputError
from cltk.hosts import deepspeed
from cltk.mitigate import MITIGATORS, catalog
from cltk.run.methods import build_mitigators
from tests.mitigator_cases import CASES

CARD = """---
line: "Does nothing."
source: "Nobody 1900"
family: loss
time: "none"
memory: "none"
engines: [Trainer, loop]
composes: "with all"
---

    a formula
    of two lines

Text.
"""


def files_in(node: Any, folder: Path) -> None:
    """Make every file that an example names, so that it is there to be checked."""
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            files_in(value, folder)
    elif isinstance(node, str) and re.fullmatch(r"[\w./-]+\.(txt|jsonl|json|csv|parquet|safetensors|yaml)", node):
        (folder / node).parent.mkdir(parents=True, exist_ok=True)
        (folder / node).write_text("a line of text\n")


def blocks(card: catalog.Card, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card.text, re.DOTALL)


@pytest.mark.parametrize("name", MITIGATORS)
def test_every_method_has_a_card(name: str) -> None:
    assert catalog.card(name).text


def test_no_card_without_a_method() -> None:
    assert not set(catalog.cards()) - set(MITIGATORS)


@pytest.mark.filterwarnings("ignore")  # some constructors warn about a setting
@pytest.mark.parametrize("card", catalog.cards().values(), ids=lambda card: card.name)
def test_the_examples_run(card: catalog.Card, tmp_path: Path) -> None:
    assert blocks(card, "yaml")
    for text in blocks(card, "yaml"):
        document = yaml.safe_load(text)
        entries = document["mitigators"] if isinstance(document, dict) else document
        files_in(entries, tmp_path)
        built = build_mitigators(entries, tmp_path)
        assert MITIGATORS[card.name] in map(type, built)
    assert blocks(card, "python")
    for text in blocks(card, "python"):
        compile(text, card.name, "exec")


@pytest.mark.parametrize("card", catalog.cards().values(), ids=lambda card: card.name)
def test_deepspeed_is_named_where_attach_allows_it(card: catalog.Card) -> None:
    try:
        deepspeed.check(CASES[card.name].active(["old text"]))
        allowed = True
    except InputError:
        allowed = False
    assert allowed == ("DeepSpeed" in card.engines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\nline", "line", "two lines of ---"),
        ("composes: ", "compose: ", "compose, composes"),
        ("loop]", "loops]", "list out of Trainer"),
        ("family: loss", "family: magic", "one of data, loss"),
        ('time: "none"', "time: 3", "time must be text"),
        ("line: ", "line: [", "not YAML"),
    ],
)
def test_a_wrong_card_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    good = tmp_path / "good.md"
    good.write_text(CARD)
    assert catalog.read(good).engines == ("Trainer", "loop")
    assert catalog.read(good).text == "    a formula\n    of two lines\n\nText."
    wrong = tmp_path / "wrong.md"
    wrong.write_text(CARD.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        catalog.read(wrong)
    assert "\n" not in str(caught.value)


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in catalog.cards())
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["methods"]) == 0
    wide = capsys.readouterr().out
    assert all(name in wide for name in (*catalog.cards(), "extra memory"))
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, wide.splitlines()))
    assert main(["methods", "ewc"]) == 0
    shown = capsys.readouterr().out
    assert "1612.00796" in shown
    assert "strength/2 sum_i F_i" in shown
    assert main(["methods", "si"]) == 0
    formula = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if ("mega_i" in line and "=" in line) or "L +" in line
    ]
    assert formula == ["omega_i", "Omega_i", "L"]  # line by line, not run together


def test_the_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(catalog.cards())
    assert main(["methods", "si", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert set(row) == {"name", "line", "source", "family", "time", "memory", "engines", "composes", "text"}


def test_an_unknown_name_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "ecw"]) == 2
    assert capsys.readouterr().err == "cltk: methods: no method 'ecw'; did you mean 'ewc'?\n"
    assert main(["methods", "../ewc"]) == 2


def test_cards_are_installed_with_the_package() -> None:
    import configparser

    config = configparser.ConfigParser()
    config.read(Path(catalog.__file__).parents[2] / "setup.cfg")
    assert "mitigate/cards/*.md" in config["options.package_data"]["cltk"].split()
