"""The HTML page: well-formed, alone, complete, safe, the same every time; its numbers are those of the aggregate."""

import re
from html.parser import HTMLParser

import pytest
from study_cases import base_scores, record, tuned_scores, write_study

from cltk.cli import main
from cltk.measure.stream import NAMES
from cltk.report import curves, figures, lost, page, tables
from cltk.report.aggregate import summarize
from cltk.report.pairs import Study
from cltk.report.provenance import provenance
from cltk.report.sides import difference
from cltk.report.sources import Entry, read_entries
from cltk.run.records import read_json

VOID = {"meta", "link", "input", "br", "img"}
BAD = "<script>alert(1)</script>&\"'$x_{$"


class Page(HTMLParser):
    """Checks nesting; keeps tags with attributes, ids, and the text of table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.tables, self.cell = [], [], {}, None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("id"), [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(folder):
    return Study(summarize(read_entries(folder)))


@pytest.fixture(scope="module")
def text(study):
    return page.render(study)


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


def test_it_needs_nothing_from_outside(parsed, text):
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_every_reference_has_one(parsed, text):
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"|aria-labelledby=\"([^\"]+)\"|data-filters=\"([^\"]+)\"", text)
    assert {name for found in named for name in found if name} <= set(ids)


def test_every_method_and_task_with_the_numbers_of_the_aggregate(parsed, study):
    head, *rows = parsed.tables["methods-table"]
    assert [row[0] for row in rows] == ["plain", "ewc", "replay"]
    for row, summary in zip(rows, study.summaries, strict=True):
        for effect in summary.retain:
            column = next(i for i, name in enumerate(head) if name.startswith(effect.task))
            low, high = (tables.number(end, effect.metric, "+") for end in effect.estimate.ci)
            assert tables.number(effect.estimate.mean, effect.metric, "+") + f"{low} to {high}" in row[column]
            assert effect.verdict in row[column]
        gain = next(cell for name, cell in zip(head, row, strict=True) if name.startswith("new-task"))
        assert tables.number(-summary.learn[0].estimate.mean, "nll", "+") in gain
    assert len(parsed.tables["details-table"]) == 1 + 3 * 4
    assert len(parsed.tables["against-table"]) == 1 + 2
    assert len(parsed.tables["seeds-table"]) == 1 + 9


def test_sort_keys_are_the_exact_means(text, study):
    keys = re.findall(r'data-sort="([^"]+)"', text)
    for summary in study.summaries:
        assert repr(summary.primary.estimate.mean) in keys


def test_verdict_first(text):
    first = text.index('class="answer"')
    assert first < text.index("<table") < text.index("<figure>")
    assert "Forgets less than plain training: ewc." in text
    assert "Against plain training, cannot tell at this n: replay." in text


def test_accessible(parsed, text):
    drawn = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert all(one.get("role") == "img" and one.get("aria-label") for one in drawn)
    assert text.count("<figure>") == 3  # nothing was logged during these trainings
    sorted_heads = [attributes for tag, attributes in parsed.tags if tag == "th" and "aria-sort" in attributes]
    assert sorted_heads
    assert text.count("<button") == len(sorted_heads)
    assert all(attributes.get("tabindex") == "0" for tag, attributes in parsed.tags if attributes.get("role") == "region")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_both_schemes(text):
    blocks = [dict(re.findall(r"--(\w+): (#\w{6})", found)) for found in re.findall(r":root \{([^}]*)\}", text)]
    light, dark = {**blocks[0], **blocks[2]}, {**blocks[1], **blocks[3]}
    for scheme in (light, dark):
        for name in ("ink", "muted", "link", "bad", "good", "open"):
            assert min(contrast(scheme[name], scheme[ground]) for ground in ("page", "raised")) >= 4.5, name
        for name in (f"s{i}" for i in range(8)):
            assert contrast(scheme[name], scheme["page"]) >= 3, name


def test_figures_follow_the_scheme(text):
    drawn = "".join(re.findall(r"<figure>.*?</figure>", text, flags=re.DOTALL))
    assert "var(--s1)" in drawn
    assert not [value for value in figures.LIGHT.values() if value in drawn]


def test_two_builds_are_the_same(folder, text, tmp_path, capsys):
    """From the command line too; `cltk.report` takes the same options."""
    assert main(["report", str(folder), "--html", str(tmp_path / "a.html"), "--latex", str(tmp_path / "tex")]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "a.html").read_text() == text
    assert (tmp_path / "tex/main.tex").exists()


def test_lost_documents_are_those_of_the_scores(study, text):
    base = base_scores().tasks["piqa"]
    after = [tuned_scores("ewc", seed, base_scores()).tasks["piqa"].values["acc"] for seed in range(3)]
    expected = {
        name: sum(one[i] < base.values["acc"][i] for one in after)
        for i, name in enumerate(base.doc_hash)
        if any(one[i] < base.values["acc"][i] for one in after)
    }
    found = study.flips(1, "piqa")
    assert {flip.document: len(flip.lost) for flip in found} == expected
    assert all(flip.before == 1 for flip in found)
    assert [len(flip.lost) for flip in found] == sorted((len(flip.lost) for flip in found), reverse=True)
    assert all(f"<code>{name[:12]}</code>" in text for name in expected)


def test_names_cannot_break_out(tmp_path):
    base = base_scores()
    bad = record("ewc", 0, 1, tuned_scores("ewc", 0, base), base)
    bad["method"], bad["experiment"] = BAD, BAD
    bad["train"]["history"] = [{"step": 1, BAD: 1.0}, {"step": 2, BAD: 2.0}]
    bad["environment"]["command"] = BAD
    for result in (bad["retain"], bad["learn"]):
        for row in result["rows"]:
            row["task"] = BAD + row["task"]
        result["headline"] = {BAD + task: metric for task, metric in result["headline"].items()}
    text = page.render(Study(summarize([Entry(bad)])))
    assert Page(text).tables["methods-table"][1][0] == BAD
    assert text.count("<script>") == 1
    assert "alert(1)</script>" not in text


def test_one_seed_without_scores(tmp_path):
    text = page.render(Study(summarize(read_entries(write_study(tmp_path / "out", seeds=1, scores=False)))))
    assert "No method was compared with plain training." in text
    assert "No per-document scores beside the records." in text
    assert "seeds-table" not in Page(text).tables


def test_no_interval_no_task_and_values_that_are_not_finite(tmp_path):
    out = write_study(tmp_path / "out", seeds=1)
    one = read_json(out / "ewc-0/record.json")
    one["retain"]["rows"] = [row for row in one["retain"]["rows"] if row["task"] != "arc"]
    for row in one["retain"]["rows"]:
        row["se"], row["ci"] = None, [None, None]
    one["train"]["history"] = [{"step": s, "probe_nll": v} for s, v in ((1, 2.0), (2, None), (3, float("nan")), (4, 1.5))]
    one["train"]["notes"] = {"early_stopping": {"trace": [{"step": 1, "old": 0.1}, {"step": 2, "old": 0.2}]}, "x": "text"}
    text = page.render(Study(summarize([Entry(read_json(out / "plain-0/record.json")), Entry(one)])))
    head, _, ewc = Page(text).tables["methods-table"]
    assert ewc[head.index("arcacc_norm (pp)") if "arcacc_norm (pp)" in head else 4] == ""
    assert "no interval" in text
    assert curves.traces(summarize([Entry(one)])) == {
        "old": [(0, [(1, 0.1), (2, 0.2)])], "probe_nll": [(0, [(1, 2.0), (4, 1.5)])]
    }  # fmt: skip
    assert "Curves over training steps of old, probe_nll." in text
    assert ">inf" not in text
    assert ">nan" not in text


def test_the_difference_of_two_methods_is_that_of_the_aggregate(study):
    for i, summary in enumerate(study.summaries):
        if summary.difference is not None:
            one = difference(study.side(i), study.side(0), summary.primary_tasks, "retain")
            assert (one.estimate, one.points) == (summary.difference.estimate, summary.difference.points)


def test_provenance_says_each_thing_once_and_what_a_run_has_of_its_own():
    base = base_scores()
    one, two = (record("ewc", seed, seed, tuned_scores("ewc", seed, base), base) for seed in (0, 1))
    one["environment"] |= {"command": "cltk run x.yaml", "git_commit": "abc", "packages": {"torch": "2.13.0"}}
    two["environment"] |= {"command": "cltk run x.yaml", "git_commit": "abc-dirty", "packages": {"torch": "2.14.0"}}
    two["config"]["mitigators"] = [{"ewc": {"strength": 9}}]
    found = provenance([one, two])
    assert found["commands"] == ["git checkout abc && cltk run x.yaml", "cltk run x.yaml"]
    assert found["facts"]["torch"] == ["2.13.0", "2.14.0"]
    assert found["facts"]["model"] == ["tiny"]
    assert found["facts"]["sha256 of start model"] == ["base"]
    assert found["settings"] == {"model.pretrained": "tiny"}
    assert [run.settings for run in found["runs"]] == ['mitigators=[{"ewc": {}}]', 'mitigators=[{"ewc": {"strength": 9}}]']
    assert [run.weights for run in found["runs"]] == ["ewc-0", "ewc-1"]


def test_large_studies_are_cut_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROWS", 4)
    monkeypatch.setattr(lost, "MOST", 1)
    text = page.render(Study(summarize(read_entries(write_study(tmp_path / "out", seeds=2)))))
    parsed = Page(text)
    assert len(parsed.tables["methods-table"]) == 1 + 3
    assert len(parsed.tables["details-table"]) == 1 + 4
    assert "The first 4 of 12 rows; the Markdown report has all." in text
    assert text.count('class="flow"') == 3  # one method on three tasks


def test_streams_and_costs_have_their_tables(tmp_path):
    out = write_study(tmp_path / "out", methods=("plain", "ewc"), seeds=2)
    assert "stream-1-table" not in Page(page.render(Study(summarize(read_entries(out))))).tables
    entries = read_entries(out)
    one = {"value": 0.25, "se": 0.01, "ci": [0.2, 0.3], "clusters": 40, "n": 80}
    matrix = {"arc": {"metric": "acc", "performance": [0.2, 0.3, 0.6]}}
    for entry in entries:
        entry.record["stream"] = {"stages": ["a", "b"], "tasks": ["arc"], "matrix": matrix, **dict.fromkeys(NAMES, one)}
        entry.record["train"] |= {"parameters": 1_000_000, "peak_bytes": 2_000_000_000, "seconds": 4.0, "tokens": 100}
    found = Page(page.render(Study(summarize(entries)))).tables
    assert found["stream-1-table"][1][:2] == ["plain", "2"]
    assert found["stream-1-table"][1][2].startswith("+0.250 [")
    assert [found[f"stream-{i}-table"][1] for i in (2, 3)] == [["arc (acc)", "0.200", "0.300", "0.600"]] * 2
    assert found["costs-table"][2] == ["ewc", "1.00", "2.00", "4", "25"]
