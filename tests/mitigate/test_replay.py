"""Mixing keeps labels; algorithm R is uniform; the reservoir through a stream of trainings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

import cltk
from cltk import tensors
from cltk.errors import InputError, RunError
from cltk.mitigate.interface import Plan, Run
from cltk.mitigate.mixed import Mixed, MixedStream
from cltk.mitigate.replay import replay_steps
from cltk.mitigate.reservoir import algorithm_r


def rows(start: int, n: int) -> list[dict[str, Any]]:
    return [{"input_ids": [i, i + 1, i + 2], "labels": [-100, i + 1, i + 2]} for i in range(start, start + n)]


def plan(data: Any, **changes: Any) -> Plan:
    defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "world_size": 1}
    args = SimpleNamespace(**(defaults | {"num_train_epochs": 1, "max_steps": -1} | changes))
    return Plan(torch.nn.Linear(1, 1), data, args)


def trained(method: Any, data: Any) -> Plan:
    made = plan(data)
    method.setup(made)
    method.finish(Run(made.model, made.model))
    return made


def test_old_rows_keep_what_counts() -> None:
    new = [{"input_ids": [1, 2], "completion_mask": [0, 1], "attention_mask": [1, 1]}]
    mixed = Mixed(new, [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}, {"input_ids": [5, 6]}], 3)
    assert mixed[1] == {"input_ids": [7, 8, 9], "completion_mask": [0, 1, 1], "attention_mask": [1, 1, 1]}
    assert mixed[2]["completion_mask"] == [1, 1]
    assert mixed[3] == mixed[1]
    assert Mixed(rows(0, 1), mixed.old, 2)[1]["labels"] == [-100, 8, 9]


def test_every_row_of_the_stream_is_kept_equally_often() -> None:
    size, pieces, trials = 5, [3, 9, 1, 12], 4000
    kept = [0] * sum(pieces)
    for seed in range(trials):
        memory: list[int] = []
        seen = 0
        for n in pieces:
            memory, seen = algorithm_r(memory, seen, range(seen, seen + n), size, seed)
        assert len(set(memory)) == size
        for row in memory:
            kept[row] += 1
    tails = [stats.binomtest(k, trials, size / sum(pieces)).pvalue for k in kept]
    assert min(tails) > 0.001 / len(kept)
    assert sum((k - trials / 5) ** 2 for k in kept) / len(kept) < 2 * trials * 0.2 * 0.8  # nor is it too uneven as a whole


def test_a_stream_replays_what_was_trained_before() -> None:
    method = cltk.Reservoir(4, 0.25)
    first = trained(method, rows(0, 12))
    assert isinstance(first.data, list)  # nothing to replay yet
    assert method.seen == 12
    second = plan(rows(100, 12))
    method.setup(second)
    assert len(second.data) == 16
    assert all(row in rows(0, 12) for row in (second.data[i] for i in range(12, 16)))
    assert second.notes["reservoir"]["seen"] == 12
    method.finish(Run(second.model, second.model))
    assert method.seen == 24  # the replayed rows are not new
    assert all(row in rows(0, 12) + rows(100, 12) for row in method.rows)


def test_what_another_method_replays_is_not_new() -> None:
    method = cltk.Reservoir(40, 0.25)
    made = plan(rows(0, 12))
    cltk.Replay(rows(50, 3), 0.5).setup(made)
    method.setup(made)
    method.finish(Run(made.model, made.model))
    assert method.rows == rows(0, 12)


def test_before_the_first_training_a_memory_may_be_given() -> None:
    made = trained(cltk.Reservoir(4, 0.25, memory=rows(50, 30)), rows(0, 12))
    assert len(made.data) == 16
    assert all(made.data[i] in rows(50, 30) for i in range(12, 16))


def test_the_state_goes_through_a_file(tmp_path: Path) -> None:
    method = cltk.Reservoir(4, 0.25)
    assert method.state_dict() == {}
    trained(method, rows(0, 12))
    tensors.save_tree(tmp_path / "state", method.state_dict())
    state = tensors.load_tree(tmp_path / "state")
    other = cltk.Reservoir(4, 0.25)
    other.load_state_dict(state)
    assert (other.rows, other.seen) == (method.rows, 12)
    one, two = trained(method, rows(100, 12)), trained(other, rows(100, 12))
    assert [one.data[i] for i in range(16)] == [two.data[i] for i in range(16)]
    assert method.rows == other.rows
    late = cltk.Reservoir(4, 0.25)
    late.setup(plan(rows(100, 12)))
    with pytest.raises(RunError, match="before attach"):
        late.load_state_dict(state)


def test_refusals() -> None:
    for wrong in (lambda: cltk.Reservoir(0, 0.1), lambda: cltk.Reservoir(4, 1.0), lambda: cltk.Reservoir(4, 0.1, memory=[]),
                  lambda: cltk.Replay([], -0.1)):  # fmt: skip
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(InputError, match="must have a length"):
        cltk.Reservoir(4, 0.1).setup(plan(iter(rows(0, 3))))
    with pytest.raises(InputError, match="less than one old row"):
        cltk.Replay(rows(0, 2), 0.01).setup(plan(rows(0, 3)))


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"),
    [(21, 0.3, 30), (10, 0.5, 20), (10, 0.05, 11), (19, 0.05, 20), (7, 0.0, 7), (90, 0.1, 100)],
)
def test_steps_are_those_of_the_decimal_number(steps: int, fraction: float, expected: int) -> None:
    assert replay_steps(steps, fraction) == expected


@pytest.mark.parametrize("kind", ["torch", "numpy", None])
def test_old_rows_look_like_the_new_ones(kind: str | None) -> None:
    """datasets' set_format: a batch of tensors and lists cannot be made."""
    from datasets import Dataset
    from transformers import default_data_collator

    new = Dataset.from_list(rows(0, 4)).with_format(kind)
    mixed = Mixed(new, [{"input_ids": [7, 8, 9]}], 4)
    assert {type(row["input_ids"]) for row in mixed} == {type(new[0]["input_ids"])}
    batch = default_data_collator(list(mixed))
    assert batch["labels"].tolist() == [[-100, i + 1, i + 2] for i in range(4)] + [[7, 8, 9]] * 4


def test_columns_are_filled_kept_or_refused() -> None:
    new = [row | {"token_type_ids": [0, 0, 0], "position_ids": [0, 1, 2], "weight": 0.5, "name": "x"} for row in rows(0, 2)]
    with pytest.raises(InputError, match="column 'weight' that old rows lack"):
        Mixed(new, [{"input_ids": [7, 8]}], 1)
    old = [{"input_ids": [7, 8], "weight": 2.0}]
    expected = {"input_ids": [7, 8], "labels": [7, 8], "token_type_ids": [0, 0], "position_ids": [0, 1], "weight": 2.0}
    assert Mixed(new, old, 1)[2] == expected
    left = Mixed(new, [{"input_ids": [7, 8]}], 1, reads=lambda name: name != "weight")  # what Trainer drops anyway
    assert set(left[0]) == set(left[2]) == set(expected) - {"weight"}


def test_a_row_is_read_once_and_a_memory_no_further_than_needed(tokenizer: Any) -> None:
    looked: list[int] = []

    class Data:
        def __len__(self) -> int:
            return 200

        def __getitem__(self, i: int) -> dict[str, Any]:
            looked.append(i)
            return rows(i, 1)[0]

    made = plan(Data())
    made.tokenizer = tokenizer
    cltk.Replay(["the cat sat on the mat"] * 5_000, 0.05, length=8).setup(made)
    assert len(looked) < 210
    note = made.notes["replay"]
    assert (note["new_tokens"], note["new_tokens_counted"], note["old_rows"], note["old_tokens"]) == (600, 400, 11, 88)
    assert len(made.data.old) == 11


def test_masks_of_trl_say_what_counts() -> None:
    made = plan([{"input_ids": [1, 2, 3, 4], "completion_mask": [0, 0, 1, 1]}] * 20)
    cltk.Replay(rows(50, 3), 0.2).setup(made)
    assert made.notes["replay"]["new_tokens_counted"] == 40


def test_packed_rows_are_told() -> None:
    made = plan([{"input_ids": [1, 2, 3, 4], "seq_lengths": [1, 3]}] * 20)
    cltk.Replay(rows(50, 3), 0.2).setup(made)
    assert made.notes["replay"]["new_sequences"] == 40


def test_the_reservoir_reads_only_what_it_keeps() -> None:
    looked: list[int] = []

    class Data(list):  # type: ignore[type-arg]
        def __getitem__(self, i: Any) -> Any:
            looked.append(i)
            return super().__getitem__(i)

    method = cltk.Reservoir(3, 0.0)
    data = Data(rows(0, 500))
    trained(method, data)
    assert len(method.rows) == 3
    assert len(looked) < 10
    assert method.rows == algorithm_r([], 0, rows(0, 500), 3, 0)[0]


def test_a_stream_of_new_rows_hears_of_each_epoch(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Trainer tells a stream its epoch, by which datasets shuffle it: with replay every pass had one order."""
    from datasets import IterableDataset

    rows = [{"input_ids": [3, 1, 4, 1, 5, 9 + i]} for i in range(16)]
    stream = IterableDataset.from_generator(lambda: iter(rows)).shuffle(seed=0, buffer_size=16)
    mixed = MixedStream(stream, [{"input_ids": [2, 2, 2]}], 0.1, "replay", lambda name: name == "input_ids")
    orders = []
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        stream.set_epoch(epoch)
        orders.append([row["input_ids"][-1] for row in mixed if row["input_ids"] != [2, 2, 2]])
        assert orders[-1] == [row["input_ids"][-1] for row in stream]
    assert orders[0] != orders[1]
    plain = MixedStream(iter_rows(rows), [{"input_ids": [2, 2, 2]}], 0.1, "replay", lambda name: True)
    plain.set_epoch(1)  # which torch's own lack


def iter_rows(rows: list[Any]) -> Any:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows)

    return Stream()
