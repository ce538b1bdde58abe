"""KL with one model in memory at a time: to the last bit that of both together, bounded, and gone afterwards.

What people met: two models that fit alone and not together; logits kept in 16 bits, which are no longer the model's
(ikawrakow/ik_llama.cpp#325); files of 11 GB that nobody announced (ggml-org/llama.cpp#6936, #5076), or that killed processes
left in a cache (ibis-project/ibis#6974, sorbet/sorbet#9098, netneurolab/neuromaps#80). Precisions by name.
"""

from __future__ import annotations

import gc
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import cltk
from cltk.cli import main
from cltk.errors import InputError
from cltk.measure.divergence import divergence, remember, text_divergence
from cltk.measure.evaluate import TextTask
from cltk.measure.remembered import Remembered
from tests.conftest import sentences
from tests.measure.test_adapters_measured import adapter

TEXT = TextTask("old", [{"text": s, "from": str(i // 4)} for i, s in enumerate(sentences(24))], cluster="from")
LONG = TextTask("long", [{"text": " ".join(sentences(40))}, {"text": "a"}, {"text": " ".join(sentences(30, seed=2))}])


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_same_to_the_last_bit(kind: str, dtype: torch.dtype, tiny: Any, tokenizer: Any) -> None:
    """Windows of a tuned model with fewer positions, and other vocabularies, among them."""
    start, tuned = tiny(kind, max_position_embeddings=128).to(dtype), tiny(kind, seed=1).to(dtype)
    tuned.config.max_position_embeddings = 96
    tuned.resize_token_embeddings(304, mean_resizing=False)
    answers = TextTask("answers", [{"prompt": "the cat", "completion": " sat."}, {"prompt": "a", "completion": " b"}])
    texts = [TEXT, LONG, answers]
    both = text_divergence((start, tokenizer), (tuned, tokenizer), texts, 7)
    kept = remember((start, tokenizer), texts, 7, [96, 128])
    del start
    alone = text_divergence((kept, tokenizer), (tuned, tokenizer), texts, 7)
    assert alone == both
    assert set(both[0]) == {"old", "long", "answers"}
    assert both[0]["long"]["kl"] > 1e-4
    assert held() == kept.bytes > 0  # what is counted is what is there
    assert not list(Path("cache").iterdir())  # so that a killed process leaves nothing
    del kept
    gc.collect()
    assert held() == 0


def held() -> int:
    """Bytes of the files below the cache folder that this process has open and that have no name: nothing else can be left."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            name = os.readlink(one)
            found += one.stat().st_size if name.startswith(str(Path("cache").resolve())) and "(deleted)" in name else 0
    return found


def test_the_bound_is_kept_and_said(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in TEXT.rows]
    needed = sum(len(row["input_ids"]) - 1 for row in rows) * 300 * 4
    enough = Remembered(tiny(), needed)
    enough.show(tiny(), rows)
    assert enough.bytes == needed
    assert divergence(enough, tiny(), {"t": rows}, 99)[0]["t"]["kl"] == 0
    with pytest.raises(InputError, match="would take"):
        Remembered(tiny(), needed - 1).show(tiny(), rows)
    monkeypatch.setattr("cltk.measure.remembered.MOST", needed - 1)
    result = cltk.measure((tiny(), tokenizer), (tiny(seed=1), tokenizer), texts=[TEXT], kl_rows=99, kl_apart=True)
    assert result.divergence["old"]["kl"] > 0  # live models are in memory anyway
    tiny().save_pretrained("base")
    tokenizer.save_pretrained("base")
    result = cltk.measure("base", "base", texts=[TEXT], kl_rows=99, kl_apart=True, dtype="float32")
    assert result.divergence == {}
    assert any(note.startswith("old: KL is left out: the base's predictions would take") for note in result.notes)
    assert {row.metric for row in result.rows} == {"nll", "bits_per_byte"}


class Watched:
    """Loads models, and knows how many were alive at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from cltk.measure import sides

        self.load, self.alive, self.most = sides.load_model, weakref.WeakSet[Any](), 0
        monkeypatch.setattr(sides, "load_model", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pair = self.load(*args, **kwargs)
        gc.collect()
        self.alive.add(pair[0])
        self.most = max(self.most, len(self.alive))
        return pair


def test_never_two_models_in_memory(study: Path, tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    for seed in (1, 2):
        tiny(seed=seed).save_pretrained(f"tuned{seed}")
        tokenizer.save_pretrained(f"tuned{seed}")
    asked: Any = {"texts": [TEXT, LONG], "dtype": "float32", "kl_rows": 5}
    watched = Watched(monkeypatch)
    together = cltk.measure("tiny-llama", ["tuned1", "tuned2"], **asked)
    assert watched.most == 2
    for apart in ({"kl_apart": True}, {"model_args": {"device_map": {"": "cpu"}}}):
        watched.most = 0
        alone = cltk.measure("tiny-llama", ["tuned1", "tuned2"], **asked, **apart)
        assert watched.most == 1
        assert [one.divergence for one in alone] == [one.divergence for one in together]
        assert [row.post for one in alone for row in one.rows] == [row.post for one in together for row in one.rows]
    gc.collect()
    assert held() == 0


def test_an_adapter_takes_no_room_of_its_own(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    adapter("low-rank")
    one, other = (
        cltk.measure("tiny-llama", "low-rank", texts=[TEXT], dtype="float32", kl_apart=apart) for apart in (False, True)
    )
    assert one.divergence == other.divergence
    assert one.divergence["old"]["kl"] > 0


def test_the_command_line(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(study)
    call = ["measure", "tiny-llama", "tiny-llama", "--text", "old.jsonl", "--dtype", "float32", "--kl-rows", "3", "--kl-apart"]
    assert main(call) == 0
    assert "KL" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_a_short_file_another(tiny: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in TEXT.rows]
    kept = Remembered(tiny())
    kept.show(tiny(), rows[:4])
    kept._file.truncate(kept.bytes - 1)
    with pytest.raises(InputError, match="cannot be read back"):
        divergence(kept, tiny(), {"t": rows[:4]}, 99)
    kept._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115  # every write: no space left
    with pytest.raises(InputError, match="No space left on device"):
        kept.show(tiny(), rows[4:])
    kept._file.close()


def test_moves_what_the_system_moves_in_parts(tiny: Any, tokenizer: Any) -> None:
    """Linux writes and reads 2 GiB at a time, and fewer on some file systems."""

    class Parts:
        def __init__(self, file: Any) -> None:
            self.file, self.seek = file, file.seek

        def write(self, data: memoryview) -> int:
            return int(self.file.write(data[:1000]))

        def readinto(self, data: memoryview) -> int:
            return int(self.file.readinto(data[:1001]))

    rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in TEXT.rows]
    kept = Remembered(tiny())
    kept._file = Parts(kept._file)
    kept.show(tiny(), rows)
    assert divergence(kept, tiny(seed=1), {"t": rows}, 99) == divergence(tiny(), tiny(seed=1), {"t": rows}, 99)
