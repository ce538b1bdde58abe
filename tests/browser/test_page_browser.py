"""The page in a real browser, from file://: no errors, no network, sorting, filtering, dark mode, print, a phone, a keyboard.

Needs a Chromium that is on the machine (CONTRIBUTING.md says how to get one); playwright's own download is not used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cltk
from cltk.run.records import read_json, write_json
from tests.report.study_cases import base_scores, record, tuned_scores, write_study

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; Debian: apt-get install chromium"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
EVIL = "<script>document.title = 'broken'</script><img src=x onerror='document.title = 1'>"


def write_page(folder: Path) -> Path:
    """Three methods, two seeds, another learning rate, probes, and a document that tries to break out."""
    out, base = write_study(folder / "out", seeds=2), base_scores()
    for path in out.glob("*/record.json"):
        one = read_json(path)
        rises = [{"step": step, "old_nll_rise": 0.01 * step * (2 if one["method"] == "plain" else 1)} for step in (1, 2, 3)]
        one["train"]["history"] = rises
        one["environment"] |= {"command": "cltk run study.yaml", "git_commit": "0" * 40}
        if one["method"] == "plain":
            one["config"]["train"]["learning_rate"] = 1e-3
        write_json(path, one)
    low = record("plain at 1e-4", 0, 9, tuned_scores("ewc", 5, base), base)
    low["config"] |= {"mitigators": [{"low_lr": {"factor": 0.1}}]}
    low["train"]["notes"] = {"low_lr": {"factor": 0.1, "learning_rate": 1e-4}}
    write_json(out / "low/record.json", low)
    write_json(out / "low/scores.json", tuned_scores("ewc", 5, base).to_json())
    for run in ("plain-0", "plain-1"):
        write_samples(out / run)
    cltk.report(out, html=folder / "page.html", show=False)
    return folder / "page.html"


def write_samples(run: Path) -> None:
    lines = [
        {"doc_hash": f"piqa-{i}", "target": "0", "filtered_resps": [["-3.5", "False"], ["-1.5", "False"]],
         "arguments": {f"gen_args_{k}": {"arg_0": f"Question {i}: {EVIL}", "arg_1": f" answer {k}"} for k in (0, 1)}}
        for i in range(60)
    ]  # fmt: skip
    (run / "lm_eval/tiny").mkdir(parents=True)
    file = run / "lm_eval/tiny/samples_piqa_2026-01-01T00-00-00.000.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page, open; afterwards it must have reported nothing, asked for nothing and shown no dialog."""
    opened, said, asked = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    opened.close()


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody tr:not([hidden])", f"rows => rows.map(r => r.cells[{index}].innerText)")


def number(cell: str) -> float:
    return float(cell.lstrip("▲●○ ").split()[0])


def test_sorting_by_mouse_and_keyboard(page: Any) -> None:
    heads = page.eval_on_selector_all("#methods-table th button", "all => all.map(b => b.innerText)")
    index = next(i for i, head in enumerate(heads) if head.startswith("brown"))
    button = page.locator("#methods-table th button").nth(index)
    before = column(page, "methods-table", index)
    button.click()
    found = [number(cell) for cell in column(page, "methods-table", index)]
    assert found == sorted(map(number, before))
    assert page.locator("#methods-table th").nth(index).get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert [number(cell) for cell in column(page, "methods-table", index)] == found[::-1]
    page.locator("#methods-table th button").first.click()
    names = column(page, "methods-table", 0)
    assert names == sorted(names)
    assert page.locator("#methods-table th[aria-sort=ascending], #methods-table th[aria-sort=descending]").count() == 1


def test_filtering(page: Any) -> None:
    box = page.locator("input[data-filters=methods-table]")
    box.fill("EWC")
    assert column(page, "methods-table", 0) == ["ewc"]
    assert page.locator("p.filter output").first.inner_text() == "1 of 4"
    box.fill("")
    assert len(column(page, "methods-table", 0)) == 4


def test_a_lost_document_is_one_click_away_and_does_nothing(page: Any) -> None:
    text = page.locator("blockquote").first
    assert not text.is_visible()
    page.locator("details:has(blockquote) > summary").first.click()
    assert text.is_visible()
    assert EVIL in text.inner_text()
    assert page.title() == "study: what was forgotten"


def colours(page: Any) -> list[str]:
    """Of the ground, of text, and of text in a figure."""
    code = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
    return page.evaluate(code + " getComputedStyle(document.querySelector('figure svg text')).fill]")


def test_dark_light_and_print(page: Any) -> None:
    assert colours(page) == ["rgb(255, 255, 255)", "rgb(27, 31, 36)", "rgb(27, 31, 36)"]
    page.emulate_media(color_scheme="dark")
    assert colours(page) == ["rgb(20, 23, 27)", "rgb(232, 235, 239)", "rgb(232, 235, 239)"]
    page.emulate_media(color_scheme="dark", media="print")
    assert colours(page)[0] == "rgb(255, 255, 255)"
    assert not page.locator("p.filter").first.is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_no_width_scrolls_sideways(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_screenshot(page: Any, tmp_path: Path) -> None:
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    data = (tmp_path / "page.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert (width, height > 2000) == (1200, True)


def test_the_keyboard_reaches_the_table(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the table"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
