"""Which rows come when, and losses at the counted tokens against the whole logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cltk.data.memories import text_rows
from cltk.errors import InputError
from cltk.mitigate.interface import Run
from cltk.mitigate.memory import MemoryBatches, add_gradient, labelled, token_losses

ROWS = [{"input_ids": [i + 2] * (3 + i % 4)} for i in range(7)]


def test_every_row_comes_equally_often_and_ranks_share_the_order() -> None:
    batches = MemoryBatches(ROWS, 2, seed=4)
    alone = [i for step in range(14) for i in batches.indices(step)]
    assert all(sorted(alone[at : at + 7]) == list(range(7)) for at in range(0, 28, 7))
    assert alone[:7] != alone[7:14]
    shared = [i for step in range(7) for rank in range(2) for i in batches.indices(step, rank, 2)]
    assert shared == alone
    assert MemoryBatches(ROWS, 2, seed=5).indices(0) + MemoryBatches(ROWS, 2, seed=5).indices(1) != alone[:4]


def test_batches_are_padded_and_masked() -> None:
    batch = MemoryBatches(ROWS, 3).at(1)
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, int(lengths.max()))
    assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()


def test_bad_memories() -> None:
    with pytest.raises(InputError, match="no row has a token to predict"):
        MemoryBatches([{"input_ids": [1]}, {"input_ids": [1, 2], "labels": [1, -100]}], 2)
    with pytest.raises(InputError, match="batch_size"):
        MemoryBatches(ROWS, 0)
    with pytest.raises(InputError, match="is empty"):
        text_rows([], None, 8, "prompts")
    with pytest.raises(InputError, match="need a tokenizer"):
        text_rows(["a cat"], None, 8, "prompts")


def test_what_counts_comes_from_labels_or_masks() -> None:
    assert labelled({"input_ids": torch.tensor([5, 6])}) == {"input_ids": [5, 6], "labels": [5, 6]}
    assert labelled({"input_ids": [5, 6], "labels": [-100, 6], "completion_mask": [1, 1]})["labels"] == [-100, 6]
    assert labelled({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]})["labels"] == [
        -100, 6, -100,
    ]  # fmt: skip


def test_texts_stay_apart_and_are_cut(tokenizer: Any) -> None:
    rows = text_rows(["a cat sat", "the dog ran on the mat under a tree"], tokenizer, 4, "prompts")
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == ["a cat sat", tokenizer.decode(rows[1]["input_ids"])]
    assert len(rows[1]["input_ids"]) == 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_token_losses_against_a_loop(kind: str, tiny: Any) -> None:
    model = tiny(kind).eval()
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9]}, {"input_ids": [11, 12, 13]}]
    batch = MemoryBatches(rows, 2).at(0)
    expected = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        length = 5 if ids[0] == 5 else 3
        log_p = model(ids[None, :length]).logits[0].log_softmax(-1)
        expected += [-log_p[t - 1, ids[t]].item() for t in range(1, length) if labels[t] != -100]
    torch.testing.assert_close(token_losses(model, batch), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_added_gradients_leave_idle_parameters_idle(tiny: Any) -> None:
    model = tiny()
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    run = Run(model, model)
    batch = MemoryBatches(ROWS, 2).at(0)
    with torch.no_grad():
        value = add_gradient(run, lambda: token_losses(run.forward, batch).mean())
    assert all(p.grad is None for p in parameters[1:])
    loss = token_losses(model, batch).mean()
    torch.testing.assert_close(parameters[0].grad, 1 + torch.autograd.grad(loss, parameters[0])[0])
    assert value == pytest.approx(loss.item())


def test_batch_size_is_the_trainers(tiny: Any) -> None:
    from cltk.mitigate.memory import memory_batches

    plan: Any = SimpleNamespace(model=tiny(), tokenizer=None, args=SimpleNamespace(per_device_train_batch_size=3))
    assert memory_batches("a_gem", ROWS, plan, None, 8, 0).size == 3
    assert memory_batches("a_gem", ROWS, plan, 2, 8, 0).size == 2


def test_validation_rows_of_any_make(tiny: Any) -> None:
    """Several sets, rows without tokens and none are refused by name; TRL's masks say what counts."""
    from cltk.mitigate.memory import probe_rows

    sets = {"a": [{"input_ids": [1, 2]}], "b": [{"input_ids": [3, 4]}]}
    for rows, said in (
        (sets, r"several sets \(a, b\)"),
        ([{"text": "x"}], "not tokenised"),
        ([], "no validation"),
        (None, "no val"),
    ):
        with pytest.raises(InputError, match=f"early_stopping: .*{said}"):
            probe_rows(rows, 4, "early_stopping")
    found = probe_rows([{"input_ids": [1, 2, 3], "completion_mask": [0, 0, 1]}] * 3, 2, "early_stopping")
    assert found == [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}] * 2


def test_a_turn_is_drawn_once() -> None:
    """Drawn at every step it would cost as much as the memory is large."""
    batches = MemoryBatches([{"input_ids": [i, i + 1]} for i in range(1000)], 4)
    drawn: list[int] = []
    order = batches._order
    batches._order = lambda turn: drawn.append(turn) or order(turn)  # type: ignore[method-assign, func-returns-value]
    seen = [batches.indices(step) for step in range(300)]
    assert drawn == [0, 1]
    fresh = MemoryBatches(batches.rows, 4)
    assert [fresh.indices(step) for step in range(299, -1, -1)] == seen[::-1]


def test_a_memory_on_disk_is_read_as_it_is_drawn(tiny: Any) -> None:
    """Whole, a memory of a gigabyte would be twelve of Python's numbers: at set-up every row is seen once and let go, then
    only the rows that are drawn are read; the batches are those of the same rows in a list."""
    from cltk.mitigate.memory import memory_batches
    from cltk.mitigate.rehearsal import DERPP

    rows = [{"input_ids": [i % 200 + 5, i % 190 + 6, i % 180 + 7][: 1 + i % 3]} for i in range(600)]
    data, alive = Watched(rows), Watched.alive
    plan: Any = SimpleNamespace(model=tiny(), tokenizer=None, notes={}, args=SimpleNamespace(per_device_train_batch_size=2))
    batches = memory_batches("replay_loss", data, plan, None, 8, 0)
    assert (len(data.read), Watched.most - alive <= 2) == (601, True)  # the first one twice: are these tokens
    expected = MemoryBatches([row for row in rows if len(row["input_ids"]) > 1], 2)
    data.read.clear()
    for step in range(3):
        for name, value in batches.at(step).items():
            torch.testing.assert_close(value, expected.at(step)[name])
    assert len(data.read) == 6
    assert batches.rows[2:4] == expected.rows[2:4]
    assert batches.rows[-1] == expected.rows[-1]
    method, data = DERPP(Watched(rows), samples=8, batch_size=2), Watched(rows)
    method.memory = data
    method.setup(plan)
    assert Watched.most - alive <= 10
    assert method.batches is not None
    assert len(method.stored) == len(method.batches.rows) == 8


class Watched:
    """Rows that are made when they are read; how many there were at most at once, and which were read."""

    alive = most = 0

    class Ids(list):  # type: ignore[type-arg]
        def __init__(self, ids: list[int]) -> None:
            super().__init__(ids)
            Watched.alive += 1
            Watched.most = max(Watched.most, Watched.alive)

        def __del__(self) -> None:
            Watched.alive -= 1

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.read = rows, list[int]()
        Watched.most = Watched.alive

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"input_ids": Watched.Ids(self.rows[index]["input_ids"])}
