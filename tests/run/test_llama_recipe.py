"""experiments/llama2-7b on a tiny Llama: the same YAML through `base:`, with other paths and lengths, and float32 (CPUs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import cltk
from cltk.run.estimates import estimate_yaml
from cltk.run.yaml import read_yaml
from tests.conftest import CHATML
from tests.judge_server import Server

FOLDER = Path(cltk.__file__).parent.parent / "experiments/llama2-7b"
RECIPE = FOLDER / "llama2-7b.yaml"

SMOKE = """\
base: {recipe}
model: {{pretrained: tiny-llama, dtype: float32}}
data:
  train: {{path: new.jsonl, prompt: question, completion: answer, limit: 48}}
  validation: 0.15
  heldout: 0.2
  max_length: 64
train: {{bf16: false, tf32: false}} # there is no GPU, and bfloat16 is slow on most CPUs
evals:
  retain: [toy, {{text: old.jsonl, name: old_text, limit: 12, cluster: document}}]
  include_path: tasks
  sample: 8
"""


def test_the_recipe_is_what_it_says() -> None:
    data, _ = read_yaml(RECIPE)
    train = data["train"]
    assert data["model"] == {"pretrained": "meta-llama/Llama-2-7b-hf", "dtype": "bfloat16"}
    assert (train["per_device_train_batch_size"], train["gradient_accumulation_steps"]) == (2, 8)
    assert (train["learning_rate"], train["weight_decay"], train["warmup_steps"]) == (2e-5, 0.01, 0.03)
    assert (train["lr_scheduler_type"], train["num_train_epochs"]) == ("cosine", 3)
    assert train["bf16"] is train["tf32"] is train["activation_checkpointing"] is True
    assert data["data"]["max_length"] == 2048


def test_it_trains_a_tiny_llama(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    smoke = study / "smoke.yaml"
    smoke.write_text(SMOKE.format(recipe=RECIPE))
    records: dict[str, Any] = {record["method"]: record for record in cltk.load(smoke, "out").run()}
    assert list(records) == ["full", "lora_r16", "lora_r64"]
    start = {record["digests"]["start_model"] for record in records.values()}
    for record in records.values():
        train = record["config"]["train"]
        assert (train["gradient_accumulation_steps"], train["activation_checkpointing"]) == (8, True)
        assert record["train"]["steps"] % 3 == 0 < record["train"]["steps"]
        assert record["digests"]["tuned_model"] not in start
        assert {row["task"] for row in record["retain"]["rows"]} == {"toy", "old_text"}
    trained = {name: records[name]["train"]["notes"]["lora"]["trained"] for name in ("lora_r16", "lora_r64")}
    # a layer of the tiny model: q and o 32 x 32, k and v 32 x 16, gate, up and down 32 x 48
    assert trained == {f"lora_r{r}": 2 * r * (2 * 64 + 2 * 48 + 3 * 80) for r in (16, 64)}
    estimated = {e.method: e for e in estimate_yaml(smoke)}
    assert {name: estimated[name].trained for name in trained} == trained
    assert estimated["full"].trained == estimated["full"].parameters


def test_estimate_of_the_recipe_needs_neither_hub_nor_gpu() -> None:
    full, r16, r64 = estimate_yaml(RECIPE)
    assert full.parameters == full.trained == 6_738_415_616
    assert (r16.trained, r64.trained) == (39_976_960, 159_907_840)
    assert 50e9 < full.rule < 60e9  # the rule of thumb: 7 B, about 60 GB
    assert r16.training < r64.training < full.training
    assert full.weights + full.optimizer + full.gradients == full.rule
    assert r64.peak < 40e9  # with room on one 80 GB GPU


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_reads_its_configs(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(FOLDER / f"accelerate/{name}.yaml"))
    assert config.num_processes == 8
    assert str(config.mixed_precision) == "bf16"
    text: Any = yaml.safe_load((FOLDER / f"accelerate/{name}.yaml").read_text())
    assert text["num_machines"] == 1


def test_the_judged_recipe_compares_full_and_lora_on_a_tiny_llama(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    server = Server()
    server.reply = lambda body: "[[A]]"  # the first place: every pair of orders disagrees
    monkeypatch.chdir(study)
    monkeypatch.delenv("CLTK_JUDGE_KEY", raising=False)
    chat = study / "chat"
    chat.mkdir()
    for file in (study / "tiny-llama").iterdir():
        (chat / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(chat)
    (study / "q.jsonl").write_text('{"question_id": 1, "turns": ["go", "on"]}\n{"question_id": 2, "turns": ["sit", "up"]}\n')
    smoke = study / "smoke.yaml"
    text = SMOKE.format(recipe=FOLDER / "judged.yaml").replace("pretrained: tiny-llama", "pretrained: chat")
    smoke.write_text(text + f"  kl_rows: 0\n  judge: {{questions: q.jsonl, endpoint: '{server.url}', max_new_tokens: 4}}\n")
    try:
        records = cltk.load(smoke, "out").run()
    finally:
        server.http.shutdown()
        server.http.server_close()
    assert [record["method"] for record in records] == ["full", "lora_r16", "lora_r64"]
    for record in records:
        assert record["config"]["evals"]["judge"]["mode"] == "pairwise"
        assert record["judge"]["outcomes"] == {"tied": 4}
        assert record["judge"]["position"]["inconsistent"] == 4
    assert "What the judge says" in cltk.report("out", show=False)
