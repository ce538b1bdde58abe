"""Token tables: the same rows in memory and on disk, made once, made again where they are damaged, never another file's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltk.data import memory_rows, tables
from cltk.data.memories import memory_view
from cltk.data.readers import open_rows
from cltk.data.tables import Table, joined
from cltk.errors import CltkError, InputError
from cltk.mitigate.memory import MemoryBatches
from cltk.mitigate.replay import _tokens
from cltk.run.prepare import Prepared, prepare_data
from cltk.run.spec_data import DataSpec
from tests.conftest import sentences, write_jsonl

PAIR = {"path": "new.jsonl", "prompt": "question", "completion": "answer"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs, texts and conversations; every table goes to the disk."""
    monkeypatch.setenv("CLTK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "LARGE", 0)
    pairs = [{"question": f"{s} what?", "answer": f" {s.split()[0]} {i % 7}"} for i, s in enumerate(sentences(90, seed=2))]
    write_jsonl(tmp_path / "new.jsonl", pairs)
    write_jsonl(tmp_path / "old.jsonl", [{"text": s} for s in sentences(120, seed=1)])
    return tmp_path


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> tuple[Any, Any]:
    """What `make` gives from the disk and from memory."""
    disk = make()
    assert list((folder / "cache" / "tokens").glob("*.arrow"))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "LARGE", 2**60)
        return disk, make()


def sets(prepared: Prepared) -> list[list[dict[str, Any]]]:
    return [list(rows) for rows in (prepared.train, prepared.validation, prepared.heldout)]


@pytest.mark.parametrize("source", [PAIR, {**PAIR, "sample": 40}, {**PAIR, "limit": 50}, {"path": "old.jsonl", "text": "text"}])
def test_rows_on_disk_are_those_in_memory(folder: Path, monkeypatch: Any, tokenizer: Any, source: Any) -> None:
    spec = DataSpec(train=source, validation=0.2, heldout=0.3, max_length=24, drop_long=True)
    disk, memory = both(folder, monkeypatch, lambda: prepare_data(spec, tokenizer, folder))
    assert sets(disk) == sets(memory)
    assert disk.dropped == memory.dropped
    assert all(type(row["input_ids"]) is list and set(map(type, row["labels"])) == {int} for row in disk.train)
    again = prepare_data(spec.model_copy(update={"heldout": 0.1}), tokenizer, folder)
    made = len(list((folder / "cache" / "tokens").glob("*.arrow")))
    assert source.get("text") or made == 1  # one table serves all fractions
    more = [len(one.train) + one.dropped.get("train", 0) for one in (again, disk)]
    assert more[0] > more[1] or source.get("text")


def test_a_table_behaves_as_a_list(tokenizer: Any) -> None:
    rows = [{"input_ids": list(range(n)), "labels": [-100] * (n // 2) + list(range(n // 2, n))} for n in (4, 1, 7, 300, 2)]
    table = joined([Table.of(rows[:2]), Table.of(rows[2:])])
    assert list(table) == rows == [table[i] for i in range(5)] == table[:]
    assert table[-1] == rows[-1]
    assert table[1:3] == rows[1:3]
    with pytest.raises(IndexError):
        table[5]
    assert list(table.select([3, 0, 0])) == [rows[3], rows[0], rows[0]]
    assert list(table.lengths()) == [len(row["input_ids"]) for row in rows]
    assert list(table.select([2, 1]).lengths()) == [7, 1]
    assert list(table.counted()) == [sum(label != -100 for label in row["labels"][1:]) for row in rows]
    assert list(Table.of([{"input_ids": [5, 6, 7]}, {"input_ids": []}]).counted()) == [2, 0]
    assert list(Table.of([])) == []
    assert Table.of([]).lengths().sum() == 0
    assert _tokens(table) == _tokens(rows)
    assert np.array_equal(MemoryBatches(table, 2).rows.kept, MemoryBatches(rows, 2).rows.kept)


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_memories_on_disk(folder: Path, monkeypatch: Any, tokenizer: Any, kind: str) -> None:
    how = {"path": str(folder / "old.jsonl")} if kind == "text" else {**PAIR, "path": str(folder / "new.jsonl")}
    disk, memory = both(folder, monkeypatch, lambda: memory_view(how, tokenizer, 32))
    assert list(disk) == list(memory)
    assert len(disk) > 20
    assert list(MemoryBatches(disk, 3).at(5)["input_ids"].flatten()) == list(
        MemoryBatches(memory, 3).at(5)["input_ids"].flatten()
    )


def test_what_is_needed_is_read_and_no_more(folder: Path, tokenizer: Any) -> None:
    """A memory of which 8 sequences are asked for is read to the 8th, whatever comes behind."""
    with (folder / "old.jsonl").open("a") as file:
        file.write("{not JSON\n")
    with pytest.raises(InputError, match=r"old\.jsonl:121: not JSON"):
        memory_rows(str(folder / "old.jsonl"), tokenizer, 32)
    rows = [{"text": "the cat sat"}] * 1_000
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not JSON\n")
    assert len(memory_rows(str(folder / "long.jsonl"), tokenizer, 32, limit=8)) == 8


def test_other_bytes_under_the_same_name_and_time_are_other_rows(folder: Path, tokenizer: Any) -> None:
    spec = DataSpec(train=PAIR, max_length=64)
    file = folder / "new.jsonl"
    before, stat = sets(prepare_data(spec, tokenizer, folder)), file.stat()
    text = file.read_text().replace("cat", "dog")
    file.write_text(text)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    after = sets(prepare_data(spec, tokenizer, folder))
    assert before != after
    (folder / "copy").mkdir()
    (folder / "copy" / "new.jsonl").write_text(text)
    assert sets(prepare_data(spec, tokenizer, folder / "copy")) == after


def test_another_tokenizer_or_template_makes_another_table(folder: Path, tokenizer: Any) -> None:
    import copy

    spec = DataSpec(train=PAIR, max_length=64)
    prepare_data(spec, tokenizer, folder)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["what"])
    assert sets(prepare_data(spec, other, folder)) != sets(prepare_data(spec, tokenizer, folder))
    assert len(list((folder / "cache" / "tokens").glob("*.arrow"))) == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "said"])
def test_a_damaged_table_is_made_again(folder: Path, tokenizer: Any, harm: str) -> None:
    spec = DataSpec(train=PAIR, max_length=64)
    before = sets(prepare_data(spec, tokenizer, folder))
    (arrow,) = (folder / "cache" / "tokens").glob("*.arrow")
    tables._known.clear()  # another process
    raw = arrow.read_bytes()
    if harm == "flip":
        at = len(raw) // 2
        arrow.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    elif harm == "cut":
        arrow.write_bytes(raw[: len(raw) // 2])
    elif harm == "gone":
        arrow.unlink()
    else:
        arrow.with_suffix(".json").write_text("{")
    assert sets(prepare_data(spec, tokenizer, folder)) == before
    assert arrow.read_bytes() == raw


def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, tokenizer: Any, monkeypatch: Any) -> None:
    import pyarrow

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow, "OSFile", full)
    with pytest.raises(CltkError, match=r"cannot be written \(No space left on device\); free some space there"):
        prepare_data(DataSpec(train=PAIR, max_length=64), tokenizer, folder)
    assert {file.suffix for file in (folder / "cache" / "tokens").iterdir()} <= {".lock"}
    monkeypatch.undo()
    monkeypatch.setenv("CLTK_CACHE", str(folder / "new.jsonl"))
    monkeypatch.setattr(tables, "LARGE", 0)
    with pytest.raises(CltkError, match=r"cannot be written"):
        prepare_data(DataSpec(train=PAIR, max_length=64), tokenizer, folder)


def test_a_fault_in_a_table_names_row_and_line_and_leaves_nothing(folder: Path, tokenizer: Any) -> None:
    rows = [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()]
    write_jsonl(folder / "bad.jsonl", [*rows, {"question": "q", "answer": None}, {"question": None, "answer": "a"}])
    with pytest.raises(
        InputError, match=r"data\.train \(bad\.jsonl\), row 90: column 'answer' is null.*2 such rows of 92: 90, 91"
    ):
        prepare_data(DataSpec(train={**PAIR, "path": "bad.jsonl"}), tokenizer, folder)
    with (folder / "new.jsonl").open("a") as file:
        file.write('{"question": \n')
    with pytest.raises(InputError, match=r"new\.jsonl:91: not JSON"):
        prepare_data(DataSpec(train=PAIR), tokenizer, folder)
    assert not list((folder / "cache" / "tokens").glob("*.arrow"))


WORKER = """
import time
from cltk.data import tables

def rows(facts):
    print("making", flush=True)
    time.sleep(1)
    facts["made"] = 1
    yield from ({"input_ids": [i, i + 1]} for i in range(3000))

table, facts = tables.table_of(2**40, lambda: "key", rows)
print(int(table.lengths().sum()) + facts["made"])
"""


def test_two_processes_make_one_table(folder: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(said, key=len) == [["6001"], ["making", "6001"]]  # the other waited


def test_tables_that_nobody_used_for_a_month_go(folder: Path, tokenizer: Any) -> None:
    prepare_data(DataSpec(train=PAIR, max_length=64), tokenizer, folder)
    (about,) = (folder / "cache" / "tokens").glob("*.json")
    old = time.time() - tables.MONTH - 60
    os.utime(about, (old, old))
    prepare_data(DataSpec(train=PAIR, max_length=64), tokenizer, folder)  # used again
    prepare_data(DataSpec(train=PAIR, max_length=65), tokenizer, folder)
    assert about.exists()
    os.utime(about, (old, old))
    prepare_data(DataSpec(train=PAIR, max_length=66), tokenizer, folder)
    assert not about.exists()
    assert not about.with_suffix(".arrow").exists()


def test_workers_of_a_data_loader_read_a_table(folder: Path, tokenizer: Any) -> None:
    import pickle

    for large in (0, 2**60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "LARGE", large)
            table = memory_view(str(folder / "old.jsonl"), tokenizer, 32)
        copy = pickle.loads(pickle.dumps(table))
        assert list(copy) == list(table)


def test_a_table_of_tokens_is_that_of_how_its_file_was_read(tmp_path: Path) -> None:
    """The same bytes under another ending are other rows: a .txt that was JSON lines stayed raw JSON behind its new name."""
    digests = []
    for name in ("rows.txt", "rows.jsonl", "again.jsonl"):
        (tmp_path / name).write_text('{"text": "the cat sat."}\n')
        digests.append(open_rows(tmp_path / name).digest())
    assert digests[0] != digests[1] == digests[2]
