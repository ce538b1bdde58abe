"""Two tiny models on eight kinds of tasks, scored and written by lm-eval alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.conftest import WORDS, sentences, write_jsonl

N = 24
GROUP = "group: both\ntask: [toy, labels]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
MULTIPLE = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
KINDS = {
    "toy": MULTIPLE + "doc_to_target: label\nmetric_list: [{metric: acc}, {metric: acc_norm}]\nmetadata: {cluster: source}\n",
    "labels": MULTIPLE + "doc_to_target: '{{choices[label]}}'\nmetric_list: [{metric: acc}]\n",
    "digits": MULTIPLE.replace("{{choices}}", "{{digits}}")
    + "doc_to_target: '{{digits[label]}}'\nmetric_list: [{metric: acc}]\n",
    "blank": "output_type: multiple_choice\ndoc_to_text: !function code.which\ndoc_to_target: tail\n"
    "doc_to_choice: !function code.contexts\nmetric_list: [{metric: acc}]\n",
    "words": "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{tail}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n",
    "written": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{tail}}'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\nfilter_list:\n"
    "- {name: strict, filter: [{function: regex, regex_pattern: '(the)'}, {function: take_first}]}\n"
    "- {name: first, filter: [{function: take_first}]}\n",
    "translated": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 6}\nmetric_list: [{metric: bleu}, {metric: chrf}, {metric: ter}]\n",
}


def write_tasks(folder: Path, n: int = N) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "q": text, "choices": [WORDS[(i * 5 + j * 7) % len(WORDS)] for j in range(3)], "label": (i * 7) % 3,
            "digits": ["2", "0", "1"], "tail": f" {WORDS[i % len(WORDS)]}", "source": f"s{i // 2}", "heads": [text, text[::-1]],
        }
        for i, text in enumerate(sentences(n, seed=5))
    ]  # fmt: skip
    data = write_jsonl(folder / "docs.jsonl", rows)
    (folder / "code.py").write_text(
        "def which(doc):\n    return doc['label'] % 2\n\n\ndef contexts(doc):\n    return doc['heads']\n"
    )
    for name, text in KINDS.items():
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{validation: {data}}}}}\n"
            f"validation_split: validation\n{text}"
        )
    (folder / "both.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("kinds"))


def evaluated(model: Any, tokenizer: Any, folder: Path, names: list[str], **settings: Any) -> Any:
    """lm-eval's results alone."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with mock.patch("lm_eval.evaluator.add_env_info"):
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8), tasks=names, bootstrap_iters=0, verbosity="ERROR",
            task_manager=TaskManager(include_defaults=False, include_path=str(folder)), **settings,
        )  # fmt: skip


def written(results: Any, out: Path, model: str = "tiny", template: str | None = None) -> Path:
    """The files that lm-eval's command line writes; the folder of the model."""
    from lm_eval.loggers import EvaluationTracker

    results = json.loads(json.dumps(results, default=str))
    tracker = EvaluationTracker(output_path=str(out))
    tracker.general_config_tracker.log_experiment_args("hf", f"pretrained={model}", None, template, True)
    tracker.save_results_aggregated(results={k: v for k, v in results.items() if k != "samples"}, samples=results["samples"])
    for task, found in results["samples"].items():
        tracker.save_results_samples(task_name=task, samples=found)
    return out if out.suffix else out / tracker.general_config_tracker.model_name_sanitized


@pytest.fixture(scope="session")
def results(tiny: Any, tokenizer: Any, task_folder: Path) -> dict[str, Any]:
    """lm-eval's own results of two models, never changed by tests."""
    names = ["both", "digits", "blank", "words", "rolling", "written", "translated"]
    return {name: evaluated(tiny(seed=seed), tokenizer, task_folder, names) for name, seed in (("base", 0), ("tuned", 1))}


@pytest.fixture
def runs(results: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """Their files, fresh: (base's folder, tuned's folder)."""
    return written(results["base"], tmp_path / "base"), written(results["tuned"], tmp_path / "tuned")


def edit(folder: Path, pattern: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change every object of a folder's JSON or JSON lines."""
    for file in folder.glob(pattern):
        whole = file.suffix == ".json"
        found = [json.loads(file.read_text())] if whole else [json.loads(line) for line in file.read_text().splitlines()]
        for one in found:
            change(one)
        file.write_text("".join(json.dumps(one) + "\n" for one in found))
