"""An experiment of seconds for `experiment.py --quick`: a random model, made-up rows and a task, in one folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

from driver import load, made_up

YAML = """\
model: {pretrained: model}
data:
  train: {path: new.jsonl, prompt: question, completion: answer}
  validation: {path: new.jsonl, limit: 8}
  heldout: {path: new.jsonl, limit: 12}
  max_length: 64
train:
  {learning_rate: 1.0e-3, max_steps: 4, per_device_train_batch_size: 4, lr_scheduler_type: cosine, warmup_steps: 1,
   max_grad_norm: 1.0, save_strategy: "no"}
evals:
  retain: [toy, {text: old.jsonl, name: old_text, limit: 8}]
  include_path: tasks
  limit: 8
grid:
  mitigators:
    plain: []
    low_lr: [low_lr: {factor: 0.2}]
    early_stopping: [early_stopping: {patience: 2, every: 2, budget: 0.15, memory: old.jsonl, limit: 4}]
    replay: [replay: {memory: old.jsonl, fraction: 0.25}]
    ewc: [ewc: {strength: 1.0, importance: {memory: old.jsonl, samples: 2, normalize: mean}}]
keep_model: false
"""
TASK = """\
task: toy
dataset_path: json
dataset_kwargs: {data_files: {validation: DOCUMENTS}}
validation_split: validation
output_type: multiple_choice
doc_to_text: '{{q}}'
doc_to_choice: '{{choices}}'
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def study(folder: Path) -> Path:
    """The YAML, with everything it names beside it."""
    rng = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{rng.randrange(3, 500)}" for _ in range(rng.randint(low, high)))

    def put(name: str, rows: list[dict[str, object]]) -> Path:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    (folder / "tasks").mkdir()
    load("small", "float32").save_pretrained(folder / "model")
    made_up("small").save_pretrained(folder / "model")
    put("new.jsonl", [{"question": words(4, 20), "answer": " " + words(1, 4)} for _ in range(60)])
    put("old.jsonl", [{"text": words(30, 120)} for _ in range(40)])
    choices = [{"q": words(4, 20), "choices": [words(1, 3) for _ in range(3)], "label": rng.randrange(3)} for _ in range(12)]
    documents = put("tasks/documents.jsonl", [dict(one) for one in choices])
    (folder / "tasks" / "toy.yaml").write_text(TASK.replace("DOCUMENTS", str(documents)))
    (folder / "quick.yaml").write_text(YAML)
    return folder / "quick.yaml"
