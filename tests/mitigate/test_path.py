"""SI and RWalk against loops over every step, written with numpy; the walk; several trainings; what they keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cltk import tensors
from cltk.errors import InputError
from cltk.importance.fisher import Importance
from cltk.mitigate.interface import Mitigator, Plan, Run
from cltk.mitigate.path import SI, Tracker, gained_, per_distance, walk
from cltk.mitigate.quadratic import EWC
from cltk.mitigate.rwalk import RWalk, per_divergence
from tests import forks
from tests.mitigate.test_quadratic import ROWS, llama, step, train, weights_of

pytestmark = pytest.mark.filterwarnings("ignore:si. nothing is protected in the first training")


class Recorder(Mitigator):
    """Gradients and weights of every step, as they stand at its place."""

    def __init__(self) -> None:
        self.grads: list[dict[str, np.ndarray]] = []
        self.weights: list[dict[str, np.ndarray]] = []

    def start(self, run: Run) -> None:
        self.model: Any = run.model
        self.weights.append(self._weights())

    def _weights(self) -> dict[str, np.ndarray]:
        return {name: p.detach().double().numpy().copy() for name, p in tensors.trainable(self.model)}

    def grad(self, run: Run) -> None:
        self.grads.append({name: p.grad.double().numpy().copy() for name, p in tensors.trainable(run.model)})

    def step(self, run: Run) -> None:
        self.weights.append(self._weights())


def finished(model: Any, methods: list[Any], **settings: Any) -> Run:
    run = train(model, methods, **settings)
    with torch.no_grad():
        for method in methods:
            method.finish(run)
    return run


def close(found: torch.Tensor, expected: np.ndarray, scale: float = 1e-4) -> None:
    """Within `scale` of the largest element: sums of products of both signs cancel."""
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-3, atol=scale * float(np.abs(expected).max()))


def omega(record: Recorder, name: str, first: int, last: int) -> np.ndarray:
    return sum(-record.grads[t][name] * (record.weights[t + 1][name] - record.weights[t][name]) for t in range(first, last))


# --- the pure functions


def test_the_gain_is_minus_gradient_times_move() -> None:
    path, grad = torch.ones(3), torch.tensor([1.0, -2.0, 3.0], dtype=torch.bfloat16)
    before, after = torch.zeros(3), torch.tensor([0.5, 0.5, -1.0])
    gained_(path, grad, before, after)
    assert path.tolist() == [1 - 0.5, 1 + 1.0, 1 + 3.0]


def test_distances() -> None:
    path, moved, F_ = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([4.0, 1.0, 9.0])
    assert per_distance(path, moved, 0.5).tolist() == pytest.approx([2 / 1.5, 0.0, 1.0])
    assert per_divergence(path, moved, F_, 0.5).tolist() == pytest.approx([2 / 2.5, 0.0, 1.0])


def test_small_steps_add_up_to_the_loss_s_fall() -> None:
    model, ids = llama(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    parameters = list(model.parameters())
    tracker, optimizer = Tracker(parameters), torch.optim.SGD(parameters, 1e-3)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])

    start = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        with torch.no_grad():
            tracker.before()
            optimizer.step()
            tracker.after()
    total = sum(path.sum().item() for path in tracker.path)
    assert total == pytest.approx(start - loss().item(), rel=0.02)
    assert total > 1e-3


def test_a_parameter_without_gradient_gains_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    tracker = Tracker([p])
    tracker.before()
    p.data.add_(1)
    tracker.after()
    assert tracker.path[0].tolist() == [0, 0]


# --- the walk


def test_the_walk_is_adamw_on_the_rows_and_leaves_no_trace() -> None:
    model, rows = llama(), ROWS[:1]
    before, random_state, mode = weights_of(model), torch.get_rng_state(), model.training
    path, moved = walk(model, rows, 3, 1e-2, batch_size=2)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training == mode
    assert all(p.grad is None for p in model.parameters())
    reference, ids = copy.deepcopy(model), torch.tensor([rows[0]["input_ids"]])
    optimizer = torch.optim.AdamW(reference.parameters(), 1e-2, weight_decay=0)
    expected = {name: np.zeros(value.shape) for name, value in before.items()}
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(reference(input_ids=ids).logits[0, :-1], ids[0, 1:]).backward()
        earlier = weights_of(reference)
        optimizer.step()
        for name, p in tensors.trainable(reference):
            assert p.grad is not None
            expected[name] -= p.grad.double().numpy() * (p.detach() - earlier[name]).double().numpy()
    for name, value in weights_of(reference).items():
        close(path[name], expected[name], 1e-3)
        close(moved[name], (value - before[name]).double().numpy(), 1e-3)


def test_si_with_a_memory_protects_in_the_first_training() -> None:
    model, method = llama(), SI(2.0, 1e-3, ROWS, 3, 1e-2)
    path, moved = walk(model, ROWS, 3, 1e-2)
    plan = Plan(model, None, None)
    method.setup(plan)
    assert method.importance is not None
    for name, value in method.importance.items():
        expected = np.maximum(path[name].double().numpy(), 0) / (moved[name].double().numpy() ** 2 + 1e-3)
        close(value, expected)
    assert plan.notes["si"]["strength"] == 2.0
    assert plan.notes["si"]["mean"] > 0


# --- SI over two trainings


def test_si_is_the_papers_formula_over_two_trainings() -> None:
    model, method, record = llama(), SI(3.0, 1e-4), Recorder()
    finished(model, [record, method])
    end = weights_of(model)
    expected = {
        name: np.maximum(omega(record, name, 0, 4), 0) / ((record.weights[4][name] - record.weights[0][name]) ** 2 + 1e-4)
        for name in end
    }
    assert method.importance is not None
    for name, value in method.importance.items():
        close(value, expected[name])
    kept = {name: value.clone() for name, value in method.importance.items()}
    # the second: the penalty is strength sum Omega d², by autograd
    reference = copy.deepcopy(model)
    second = Recorder()
    finished(model, [second, method], steps=3)
    optimizer, generator = torch.optim.SGD(reference.parameters(), 0.05), torch.Generator().manual_seed(5)
    for _ in range(3):
        ids = torch.randint(0, 13, (2, 6), generator=generator)
        loss = F.cross_entropy(reference(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        penalty = 3.0 * sum((kept[n] * (p - end[n]) ** 2).sum() for n, p in tensors.trainable(reference))
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
    for name, p in tensors.trainable(reference):
        torch.testing.assert_close(weights_of(model)[name], p.detach(), atol=1e-6, rtol=1e-4)
    # its importance adds up; the path is of the task's gradient, before the penalty's
    for name, value in method.importance.items():
        moved = second.weights[3][name] - second.weights[0][name]
        close(value, kept[name].double().numpy() + np.maximum(omega(second, name, 0, 3), 0) / (moved**2 + 1e-4))


def test_si_is_inert_at_first_and_says_so() -> None:
    model = llama()
    with pytest.warns(UserWarning, match="nothing is protected in the first training; give memory"):
        SI(1.0).setup(Plan(model, None, None))
    a, b = llama(), llama()
    train(a, [SI(1000.0)])
    train(b, [])
    assert tensors.digest(a) == tensors.digest(b)


def test_strength_zero_computes_nothing() -> None:
    for method in (SI(0.0, memory=ROWS, memory_steps=2), RWalk(0.0)):
        model, plain = llama(), llama()
        finished(model, [method])
        finished(plain, [])
        assert tensors.digest(model) == tensors.digest(plain)
        assert method.state_dict() == {}
        assert not method.importance


# --- RWalk


IMPORTANCE = {"memory": ROWS, "kind": "empirical", "normalize": "mean"}


def test_rwalk_s_first_training_is_ewc_bit_for_bit() -> None:
    a, b = llama(), llama()
    train(a, [EWC(5.0, IMPORTANCE)])
    train(b, [RWalk(5.0, IMPORTANCE)])
    assert tensors.digest(a) == tensors.digest(b) != tensors.digest(llama())


def normalised(columns: dict[str, np.ndarray], mean: float) -> dict[str, np.ndarray]:
    found = sum(value.sum() for value in columns.values()) / sum(value.size for value in columns.values())
    return {name: value * mean / found for name, value in columns.items()}


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_rwalk_is_its_formula(alpha: float) -> None:
    model, record = llama(), Recorder()
    method = RWalk(5.0, IMPORTANCE, alpha=alpha, interval=2, xi=1e-6)
    finished(model, [record, method], steps=5)  # windows of 2, 2 and the open one of 1
    first = {name: value.double().numpy() for name, value in EWC_importance(llama()).items()}
    score = {name: np.zeros(value.shape) for name, value in first.items()}
    squares: dict[str, np.ndarray] = {}
    for t in range(5):
        for name in first:
            g = record.grads[t][name] ** 2
            squares[name] = g if t == 0 else alpha * g + (1 - alpha) * squares[name]
            if t in (1, 3, 4):
                begin = {1: 0, 3: 2, 4: 4}[t]
                moved = record.weights[t + 1][name] - record.weights[begin][name]
                F_ = squares[name] if alpha else first[name]
                score[name] += np.maximum(omega(record, name, begin, t + 1), 0) / (F_ * moved**2 / 2 + 1e-6)
    score = normalised(score, 1.0)
    fisher = {name: (first[name] + normalised(squares, 1.0)[name]) / 2 for name in first} if alpha else first
    for name in first:
        close(method.score[name], score[name], 1e-3)
        close(method.fisher[name], fisher[name], 1e-3)
    # the second training anchors here, with F + s, and averages the scores
    end, kept = weights_of(model), {name: value.clone() for name, value in method.score.items()}
    plan = Plan(model, None, None)
    finished(model, [method], steps=3, plan=plan)
    for name in first:
        assert torch.equal(method.anchors[name], end[name])
        close(method.importance[name], fisher[name] + score[name], 1e-3)
    assert plan.notes["rwalk"]["mean"] == pytest.approx(2.0, rel=1e-3)
    assert any(not torch.equal(method.score[name], kept[name]) for name in first)
    total = sum(value.double().sum().item() for value in method.score.values())
    assert total == pytest.approx(sum(value.size for value in first.values()), rel=1e-3)


def EWC_importance(model: Any) -> Importance:  # noqa: N802
    method = EWC(1.0, IMPORTANCE)
    method.setup(Plan(model, None, None))
    return Importance(method.importance or {})


# --- state


@pytest.mark.parametrize(
    "make",
    [
        lambda: SI(3.0, 1e-4),
        lambda: SI(3.0, 1e-4, ROWS, 2, 1e-2),
        lambda: RWalk(5.0, IMPORTANCE, interval=3),
        lambda: RWalk(5.0, IMPORTANCE, alpha=0.5, interval=3),
    ],
)
def test_resumed_in_a_second_training_they_end_alike(make: Callable[[], Any], tmp_path: Any) -> None:
    def run(cut: bool) -> tuple[Any, Any]:
        model, method = llama(), make()
        finished(model, [method])
        start = copy.deepcopy(model)
        carried = copy.deepcopy(method)
        method.setup(Plan(model, None, None))
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        now = Run(model, model, optimizer=optimizer)
        method.start(now)
        generator = torch.Generator().manual_seed(1)
        for t in range(5):
            if cut and t == 2:
                tensors.save_tree(tmp_path / "state.safetensors", {"0": method.state_dict()})
                method = carried
                method.setup(Plan(start, None, None))
                method.start(now)
                method.load_state_dict(tensors.load_tree(tmp_path / "state.safetensors")["0"])
            step(model, optimizer, [method], now, torch.randint(0, 13, (2, 6), generator=generator))
        with torch.no_grad():
            method.finish(now)
        return model, method

    (whole, a), (resumed, b) = run(False), run(True)
    assert tensors.digest(whole) == tensors.digest(resumed)
    for kept in ("importance", "score", "fisher"):
        x, y = getattr(a, kept, {}), getattr(b, kept, {})
        assert all(torch.equal(x[name], y[name]) for name in x)


def test_another_set_of_parameters_is_refused() -> None:
    model = llama()
    for method in (SI(1.0), RWalk(1.0, IMPORTANCE)):
        model.model.norm.weight.requires_grad_(False)
        finished(model, [method])
        model.model.norm.weight.requires_grad_(True)
        with pytest.raises(InputError, match=r"model\.norm\.weight is trained now and was not in the trainings before"):
            method.setup(Plan(model, None, None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SI(-1.0), "strength is -1"),
        (lambda: SI(1.0, 0.0), "xi and memory_lr must be above 0"),
        (lambda: SI(1.0, memory=ROWS), "memory and memory_steps go together"),
        (lambda: SI(1.0, memory_steps=3), "memory and memory_steps go together"),
        (lambda: RWalk(1.0), "no importance"),
        (lambda: RWalk("auto", IMPORTANCE), "strength is 'auto'"),
        (lambda: RWalk(1.0, IMPORTANCE, alpha=1.5), "alpha from 0 to 1"),
        (lambda: RWalk(1.0, IMPORTANCE, interval=0), "interval at least 1"),
        (lambda: RWalk(1.0, IMPORTANCE, xi=0.0), "xi above 0"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# --- sharded


def _sharded(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from cltk.mitigate.averaging import EMA, WiSEFT
    from cltk.mitigate.vectors import DARE, TIES

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
    model, found = llama(), {}
    methods = [SI(3.0, 1e-4, ROWS, 2, 1e-2), RWalk(5.0, IMPORTANCE, 0.5, 3), EMA(0.5), TIES(0.9, 0.5), DARE(0.3), WiSEFT(0.5)]
    for method in methods:
        method.setup(Plan(model, None, None))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    found = _ended(model, methods)
    if rank == 0:
        torch.save(found, f"{folder}/whole.pt")
    torch.distributed.destroy_process_group()


def _ended(model: Any, methods: list[Any]) -> dict[str, Any]:
    """Five steps, a state taken and put back at the third, the end: weights, importances."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    run = Run(model, model, optimizer=optimizer)
    for method in methods:
        method.start(run)
    generator = torch.Generator().manual_seed(5)
    for t in range(5):
        step(model, optimizer, methods, run, torch.randint(0, 13, (2, 6), generator=generator))
        for method in methods if t == 2 else ():
            if state := method.state_dict():
                method.load_state_dict(copy.deepcopy(state))
    with torch.no_grad():
        for method in methods:
            method.finish(run)
    weights = {name: tensors.whole(p.detach()) for name, p in tensors.trainable(model)}
    return {"weights": weights, "si": dict(methods[0].importance), "rwalk": dict(methods[1].score)}


@pytest.mark.slow
def test_shards_give_the_same(tmp_path: Any) -> None:
    from cltk.mitigate.averaging import EMA, WiSEFT
    from cltk.mitigate.vectors import DARE, TIES

    forks.ranks(_sharded, str(tmp_path))
    found, model = torch.load(tmp_path / "whole.pt"), llama()
    methods: list[Any] = [SI(3.0, 1e-4, ROWS, 2, 1e-2), RWalk(5.0, IMPORTANCE, 0.5, 3), EMA(0.5), TIES(0.9, 0.5), DARE(0.3)]
    methods.append(WiSEFT(0.5))
    for method in methods:
        method.setup(Plan(model, None, None))
    expected = _ended(model, methods)
    for kept in ("weights", "si", "rwalk"):
        for name, value in expected[kept].items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[kept][name], value, atol=1e-3 * scale, rtol=1e-3)
