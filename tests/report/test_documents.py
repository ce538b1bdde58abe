"""Documents on the page: out of lm-eval's own sample files, as text that does nothing, within limits."""

import json

import pytest
from lm_eval.loggers import EvaluationTracker
from study_cases import write_study

from cltk.report import documents, page
from cltk.report.aggregate import summarize
from cltk.report.documents import Answer, Document, read_documents, samples_file
from cltk.report.pairs import Study
from cltk.report.sources import read_entries

EVIL = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} </pre>"


def sample(name, prompt, choices=(" yes", " no"), target=0, scores=(-3.5, -1.25)):
    return {
        "doc_id": 0, "doc": {"q": prompt}, "target": target, "arguments": [(prompt, choice) for choice in choices],
        "resps": [[(score, False)] for score in scores], "filtered_resps": [(score, False) for score in scores],
        "doc_hash": name, "prompt_hash": "p", "target_hash": "t", "acc": 0.0,
    }  # fmt: skip


def write_samples(run, task, rows):
    """By lm-eval's own writer."""
    tracker = EvaluationTracker(output_path=str(run / "lm_eval"))
    tracker.general_config_tracker.log_experiment_args("hf", "pretrained=tiny", None, None, False)
    tracker.save_results_aggregated(results={"results": {}}, samples={task: rows})
    tracker.save_results_samples(task_name=task, samples=rows)


def test_multiple_choice(tmp_path):
    write_samples(tmp_path, "piqa", [sample("a", "Is it?"), sample("b", "Or not?", target=1)])
    found = read_documents(tmp_path, "piqa", {"a"})
    assert found == {"a": Document("Is it?", (Answer(" yes", -3.5, True), Answer(" no", -1.25, False)))}


def test_what_a_model_wrote_and_a_single_continuation(tmp_path):
    written = sample("g", "2 + 2 =") | {"arguments": [("2 + 2 =", {"until": ["."]})], "target": "4", "filtered_resps": ["5"]}
    single = sample("s", "The sky is", choices=(" blue",), target=" blue", scores=(-9.0,))
    choice_before = sample("w", "x") | {"arguments": [("Ann because she", " left"), ("Eve because she", " left")], "target": 1}
    write_samples(tmp_path, "mixed", [written, single, choice_before])
    found = read_documents(tmp_path, "mixed", {"g", "s", "w"})
    assert found["g"].answers == (Answer("4", None, True), Answer("5", None, False))
    assert found["s"].answers == (Answer(" blue", -9.0, True),)
    assert [(one.text, one.right) for one in found["w"].answers] == [("Ann because she", False), ("Eve because she", True)]


def test_the_newest_file_of_exactly_this_task(tmp_path):
    folder = tmp_path / "lm_eval" / "model"
    folder.mkdir(parents=True)
    names = ["arc_2026-01-01T00-00-00.1", "arc_2026-02-01T00-00-00.1", "arc_easy_2026-03-01T00-00-00.1", "arc_x"]
    for name in names:
        (folder / f"samples_{name}.jsonl").write_text("")
    assert samples_file(tmp_path, "arc").name == f"samples_{names[1]}.jsonl"
    assert samples_file(tmp_path, "*") is None
    assert samples_file(tmp_path, "../arc") is None
    assert read_documents(tmp_path / "elsewhere", "arc", {"a"}) == {}


def test_damaged_lines_and_large_files(tmp_path, monkeypatch):
    write_samples(tmp_path, "arc", [sample("a", "x" * 5000 + "END", choices=["c" * 999] * 2 + ["d"] * 18, scores=range(20))])
    file = samples_file(tmp_path, "arc")
    whole = file.read_text()
    odd = ["not json", "[]", "7", '{"doc_hash": "a"}', json.dumps({"doc_hash": "a", "arguments": [], "filtered_resps": []})]
    file.write_text("\n".join([*odd, whole[: len(whole) // 2], whole]))
    one = read_documents(tmp_path, "arc", {"a"})["a"]
    assert (len(one.prompt), one.prompt[-3:], one.prompt[0]) == (documents.PROMPT + 1, "END", "…")
    assert len(one.answers) == documents.ANSWERS
    assert all(len(answer.text) <= documents.PROMPT for answer in one.answers)
    monkeypatch.setattr(documents, "FILE_BYTES", 100)
    assert read_documents(tmp_path, "arc", {"a"}) == {}


@pytest.fixture
def study(tmp_path):
    out = write_study(tmp_path / "out", methods=("plain", "ewc"), seeds=2)
    for run in ("plain-0", "plain-1"):
        rows = [sample(f"piqa-{i}", f"{EVIL} {run} question {i}", choices=(EVIL, " no")) for i in range(60)]
        write_samples(out / run, "piqa", rows)
    return Study(summarize(read_entries(out)))


def test_lost_documents_are_shown_as_the_first_seed_that_lost_them_answered(study):
    text = page.render(study)
    listed = study.flips(0, "piqa")[:25]
    assert listed
    for flip in listed:
        assert f"plain-{flip.lost[0]} question {flip.document.removeprefix('piqa-')}<" in text
    assert text.count("<blockquote>") == len(listed)  # ewc has no samples


def test_a_document_does_nothing(study):
    text = page.render(study)
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text
