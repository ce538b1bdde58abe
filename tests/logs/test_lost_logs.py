"""What was lost, in words: from a measurement and from lm-eval's files, against the documents themselves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.cli import main
from cltk.logs.comparing import compare
from cltk.report.forgotten import listing, render
from tests.conftest import sentences


def documents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "docs.jsonl").read_text().splitlines()]


def right(task: str, doc: dict[str, Any]) -> str:
    """As lm-eval scores it: a target that is a digit is the place of the right choice."""
    if task == "digits":
        return str(doc["digits"][int(doc["digits"][doc["label"]])])
    return str(doc["choices"][doc["label"]])


def check(lost: list[Any], result: Any, folder: Path, tasks: tuple[str, ...]) -> None:
    """Every lost document of these tasks is there, with its own question, answer and margins."""
    by_question = {doc["q"]: doc for doc in documents(folder)}
    heads = {row.task: row for row in result.rows if result.headline[row.task] == row.metric}
    seen = [one for one in lost if one.task in tasks]
    assert len(seen) == sum(heads[task].lost for task in tasks) > 0
    for one in seen:
        doc = by_question[one.question]
        assert one.right == one.before == right(one.task, doc)
        assert one.after in (doc["digits"] if one.task == "digits" else doc["choices"])
        assert one.after != one.right
        row = next(row for row in result.samples[one.task] if row["doc_hash"] == one.doc_hash)
        assert (one.margin_before, one.margin_after) == pytest.approx((row["margin_pre"], row["margin_post"]))
        assert one.loss == row[f"{one.metric}_d"] == 1


def test_every_lost_document_of_a_measurement(tiny: Any, tokenizer: Any, task_folder: Path) -> None:
    pairs = [(tiny(seed=seed), tokenizer) for seed in (1, 0)]
    result = cltk.measure(*pairs, ["toy", "labels", "digits"], include_path=task_folder, lost=100)
    check(result.lost, result, task_folder, ("toy", "labels", "digits"))
    assert cltk.measure(*pairs, ["toy"], include_path=task_folder).lost == []


def test_every_lost_document_of_lm_evals_files(runs: Any, task_folder: Path) -> None:
    result = compare(*reversed(runs), members=True, lost=100)
    check(result.lost, result, task_folder, ("toy", "labels", "digits"))
    for lost in (one for one in result.lost if one.task == "written"):
        assert lost.right.strip() in lost.before
        assert lost.right.strip() not in lost.after
    assert compare(*runs).lost == []
    few = [one.task for one in compare(*runs, lost=2).lost]
    assert few
    assert max(map(few.count, few)) <= 2


class Words(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[str]()
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        assert not any(key in ("src", "srcset") for key, _ in attributes)


def test_commands_print_them_and_write_a_page(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = map(str, runs)
    page = tmp_path / "page.html"
    assert main(["compare", base, tuned, "--show-lost", "1", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    listed = re.findall(r"^(\w+) [0-9a-f]{12}: ", out, re.M)
    assert listed.count("digits") == 1
    assert out.count("  question: ") == out.count("  right:    ") == out.count("  now:      ") == len(listed)
    shown = Words(page.read_text())
    assert "What was forgotten" in shown.text
    assert "toy" in shown.text
    assert sum(sentence in shown.text for sentence in sentences(24, seed=5)) >= 1
    assert main(["compare", base, tuned]) == 0
    assert "question:" not in capsys.readouterr().out


def test_texts_of_documents_are_only_text(runs: Any) -> None:
    one = compare(*runs, lost=1)
    evil = "<script>alert(1)</script>\n\x1b[31m" * 100
    bad = replace(one, lost=[replace(one.lost[0], question=evil, right=evil, before=evil, after=evil)], notes=[evil])
    text = render({evil: bad, "b": bad})
    assert "<script>alert" not in text
    assert Words(text).tags.count("script") == Words(render({"b": one})).tags.count("script")
    lines = listing(bad.lost)
    assert len(lines) == 5
    assert max(map(len, lines)) < 700
    assert not any("\n" in line for line in lines)
