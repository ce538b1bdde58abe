"""The largest sequence of an importance, and a bound on every sequence's gradient: against a loop over sequences by hand."""

import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cltk
from cltk import tensors
from cltk.cli import main
from cltk.errors import InputError
from cltk.importance.estimators import PerSequence
from cltk.importance.fisher import Importance, fisher
from cltk.importance.tail import merged
from cltk.mitigate.interface import Plan
from tests.conftest import sentences
from tests.importance.test_importance import Disguised, Toy, chain, gpt2, llama, neox, rows_of

LENGTHS = (5, 12, 3, 12, 9)


def naive(model, rows, clip=None, absolute=False):
    """(F, each sequence's part of the trace before the mean, each gradient's norm), in numpy, one sequence at a time."""
    model.eval()
    total, parts, norms = {}, [], []
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])[None]
        model.zero_grad()
        logits = model(input_ids=ids).logits[0, :-1]
        (logits.square().sum() if absolute else F.cross_entropy(logits, ids[0, 1:], reduction="sum")).backward()
        grads = {name: p.grad.double().numpy() for name, p in tensors.trainable(model)}
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        scale = 1.0 if clip is None else min(1.0, clip / norm)
        measured = {name: np.abs(scale * g) if absolute else (scale * g) ** 2 for name, g in grads.items()}
        total = {name: total.get(name, 0) + value / len(rows) for name, value in measured.items()}
        parts.append(sum(float(value.sum()) for value in measured.values()))
        norms.append(norm)
    model.zero_grad()
    return total, parts, norms


def between(norms):
    """A bound that three of five are above, and none is at."""
    low, high = sorted(norms)[1:3]
    return math.sqrt(low * high)


def assert_equal(found, expected):
    """float32 sums: to 1e-4 of a tensor's largest element, and to what rounding makes of zeros (a key's bias)."""
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=0, atol=1e-4 * np.abs(value).max() + 1e-6 * largest)


@pytest.fixture(params=["hooks", "loop"])
def method(request, monkeypatch):
    """Both ways of taking sequences apart."""
    if request.param == "loop":
        monkeypatch.setattr(PerSequence, "_try", lambda self, row: "loop")
    return request.param


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2, neox])
@pytest.mark.parametrize("kind", ["empirical", "mas"])
def test_every_sequence_s_gradient_is_bounded(kind, make, tied, method):
    model, rows = make(tied), rows_of(*LENGTHS)
    norms = naive(model, rows, absolute=kind == "mas")[2]
    clip = between(norms)
    expected, parts, _ = naive(model, rows, clip, absolute=kind == "mas")
    found = fisher(model, rows, kind, batch_size=3, clip=clip)
    assert_equal(found, expected)
    info = found.info
    assert (info["method"], info["clip"], info["clipped"]) == (method, clip, sum(norm > clip for norm in norms))
    assert info["largest_of"] == "sequence"
    assert info["largest_share"] == pytest.approx(max(parts) / sum(parts), rel=1e-4)
    assert parts[info["largest_row"]] == pytest.approx(max(parts), rel=1e-4)  # of squares those above all are clip²


@pytest.mark.parametrize("kind", ["empirical", "mas", "exact"])
def test_without_a_bound_the_largest_sequence_is_named_and_nothing_else_changes(kind, method):
    model, rows = llama(tied=True), rows_of(4, 6, 3, 6, 5)
    if kind == "exact":
        alone = [fisher(model, [row], kind) for row in rows]
        parts = [one.trace * one.info["tokens"] for one in alone]
        expected = fisher(model, rows, kind, batch_size=5)
    else:
        expected, parts, _ = naive(model, rows, absolute=kind == "mas")
    found = fisher(model, rows, kind, batch_size=2)
    info = found.info
    assert (info["largest_of"], info["largest_row"], info["clip"]) == ("sequence", int(np.argmax(parts)), None)
    assert info["largest_share"] == pytest.approx(max(parts) / sum(parts), rel=1e-4)
    assert "clipped" not in info
    if kind != "exact":
        assert_equal(found, expected)


def test_a_bound_above_every_norm_changes_no_bit_more_than_the_order_of_a_sum():
    model, rows = llama(tied=True), rows_of(*LENGTHS)
    for kind in ("empirical", "mas"):
        found, free = fisher(model, rows, kind, clip=1e9), fisher(model, rows, kind)
        assert all(torch.equal(found[name], free[name]) for name in free)
        assert found.info["clipped"] == 0


def test_mc_names_its_largest_batch_and_with_a_bound_its_largest_sequence():
    model, rows = Toy(), chain(6, 6, seed=5)
    found = fisher(model, rows, "mc", batch_size=2)
    alone = [fisher(model, rows[i : i + 2], "mc", batch_size=2, first=i) for i in (0, 2, 4)]
    parts = [one.trace * one.info["tokens"] for one in alone]
    assert (found.info["largest_of"], found.info["largest_row"]) == ("batch", 2 * int(np.argmax(parts)))
    assert found.info["largest_share"] == pytest.approx(max(parts) / sum(parts), rel=1e-4)
    one = fisher(model, rows, "mc", batch_size=1)  # a batch of one row: squared by sequence
    free = fisher(model, rows, "mc", batch_size=3, clip=1e9)
    assert free.info["largest_of"] == "sequence"
    assert_equal(free, {name: value.numpy() for name, value in one.items()})
    singles = [fisher(model, [row], "mc", first=i) for i, row in enumerate(rows)]
    norms = [math.sqrt(single.trace * single.info["tokens"]) for single in singles]
    clip = math.sqrt(math.prod(sorted(norms)[2:4]))
    bounded = fisher(model, rows, "mc", batch_size=4, clip=clip)
    scales = [min(1.0, clip / norm) ** 2 * single.info["tokens"] for norm, single in zip(norms, singles, strict=True)]
    counted = sum(single.info["tokens"] for single in singles)
    expected = {n: sum(s * one[n].double().numpy() for s, one in zip(scales, singles, strict=True)) / counted for n in found}
    assert_equal(bounded, expected)
    assert bounded.info["clipped"] == 3
    assert bounded.info["level"] == "token"


def test_a_layer_that_the_hooks_do_not_know_is_bounded_too():
    model, rows = Disguised(), rows_of(5, 8, 8, 3)
    clip = between(naive(model, rows)[2])
    found = fisher(model, rows, "empirical", clip=clip)
    assert found.info["method"] == "loop"
    assert_equal(found, naive(model, rows, clip)[0])


class Steep(Toy):
    """Logits many times as large where a sequence begins with token 1."""

    times = 100.0

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        out = super().forward(input_ids)
        out.logits = out.logits * torch.where(input_ids[:, :1] == 1, self.times, 1.0)[..., None]
        return out


def heavy(count=12, at=7):
    rows = [{"input_ids": torch.tensor([2 + i % 5, 3, 4, 5, 6])} for i in range(count)]
    rows[at] = {"input_ids": torch.tensor([1, 3, 4, 5, 6])}
    return rows


def test_one_sequence_above_a_quarter_is_a_warning_that_names_row_share_and_the_others_norm(caplog):
    model, rows = Steep(), heavy()
    _, parts, norms = naive(model, rows)
    with caplog.at_level(logging.WARNING):
        found = fisher(model, rows, "empirical", batch_size=4)
    [line] = [record.getMessage() for record in caplog.records]
    others = math.sqrt(sum(norm**2 for i, norm in enumerate(norms) if i != 7) / 11)
    assert "one sequence of 12 (row 7)" in line
    assert f"makes {parts[7] / sum(parts):.0%} of the trace" in line
    assert f"a norm of {norms[7]:.3g}, the others of {others:.3g}" in line
    assert "clip" in line
    assert "\n" not in line
    caplog.clear()
    bounded = fisher(model, rows, "empirical", clip=others)
    assert not caplog.records
    assert bounded.info["largest_share"] < 0.25 < found.info["largest_share"]


@pytest.mark.parametrize("count", [1, 2, 4, 24])
def test_even_sequences_are_no_warning_however_few(count, caplog):
    rows = [{"input_ids": torch.tensor([2, 3, 4, 5, 6])}] * count
    for kind in ("empirical", "mas", "mc"):
        found = fisher(Toy(), rows, kind, batch_size=1)
        if kind != "mc":
            assert found.info["largest_share"] == pytest.approx(1 / count, rel=1e-5)
    assert not caplog.records


def test_mc_warns_of_a_batch(caplog):
    model = Steep()
    model.times = 8.0  # with surer labels a model has no gradient on those it draws itself
    fisher(model, heavy(32), "mc", batch_size=2)
    [line] = [record.getMessage() for record in caplog.records]
    assert "one batch of 16 (rows from 6 on)" in line


def test_parts_merge_with_their_bound_and_their_largest():
    model, rows = llama(tied=True), rows_of(4, 6, 3, 5, 4, 6)
    clip = between(naive(model, rows)[2])
    whole = fisher(model, rows, "empirical", clip=clip)
    parts = fisher(model, rows[:3], "empirical", clip=clip), fisher(model, rows[3:], "empirical", clip=clip, first=3)
    both = parts[0].merge(parts[1])
    assert_equal(both, {name: value.numpy() for name, value in whole.items()})
    for key in ("clip", "clipped", "largest_of"):
        assert both.info[key] == whole.info[key]
    assert both.info["largest_share"] == pytest.approx(whole.info["largest_share"], rel=1e-5)
    with pytest.raises(InputError, match=r"cannot merge, clip is .* and None"):
        parts[0].merge(fisher(model, rows[3:], "empirical", first=3))
    older = {key: value for key, value in whole.info.items() if not key.startswith("largest")}
    assert merged(whole.info, older) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, r"fisher: clip=0\.0; give a positive number"),
        ({"clip": -1.0}, r"clip=-1\.0"),
        ({"clip": math.nan}, "clip=nan"),
        ({"clip": math.inf}, "clip=inf"),
        ({"clip": True}, "clip=True"),
        ({"clip": "1"}, "clip='1'"),
        ({"clip": 1.0, "kind": "exact"}, "clip bounds a sequence's gradient, and exact has one of every position"),
    ],
)
def test_a_bound_that_cannot_be_is_one_line_also_before_any_model(settings, message):
    for work in (lambda: fisher(llama(), rows_of(4), **settings), lambda: cltk.EWC(1.0, {"memory": ["a b c"], **settings})):
        with pytest.raises(InputError, match=message) as caught:
            work()
        assert "\n" not in str(caught.value)


def test_other_arguments_of_an_importance_are_checked_before_any_model():
    for settings in ({"kind": "true"}, {"samples": 0}, {"batch_size": 0}, {"seed": -1}, {"rtol": 0.0}, {"normalize": "max"}):
        with pytest.raises(InputError, match=next(iter(settings))):
            cltk.EWC(1.0, {"memory": ["a b c"], **settings})


def test_the_command_says_it_and_the_file_keeps_it(tiny, tokenizer, tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "old.txt").write_text("\n".join(sentences(12)))
    out = tmp_path / "f.safetensors"
    command = ["fisher", str(tmp_path / "model"), "--memory", str(tmp_path / "old.txt"), "--out", str(out), "--block", "16"]
    assert main([*command, "--kind", "empirical", "--clip", "0.5"]) == 0
    shown = json.loads(capsys.readouterr().out.partition(": ")[2])
    info = Importance.load(out).info
    for key in ("largest_share", "largest_of", "largest_row", "clip", "clipped"):
        assert shown[key] == info[key], key
    assert info["clipped"] == info["sequences"]
    assert info["largest_share"] == pytest.approx(1 / info["sequences"], rel=1e-4)
    assert main([*command, "--kind", "empirical", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["sequences"] == info["sequences"]
    assert str(out) in said.err
    assert main([*command, "--clip", "-1"]) == 2
    assert main([*command, "--kind", "exact", "--clip", "1"]) == 2


@pytest.mark.parametrize("method", ["ewc", "online_ewc", "rwalk", "mas"])
def test_every_method_with_an_importance_takes_it_and_its_record_says_so(method, tiny, tokenizer):
    old, new = sentences(12, seed=1), sentences(8, seed=2)
    source = {"memory": old, "block": 16, "kind": "empirical", "clip": 0.5}
    made = cltk.MAS(1.0, old, block=16, clip=0.5) if method == "mas" else cltk.MITIGATORS[method](1.0, source)
    rows = [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text)["input_ids"][:8] for text in new)]
    plan = Plan(tiny(), rows, None, tokenizer)
    made.setup(plan)
    note = plan.notes[method]
    assert note["clip"] == 0.5
    assert note["clipped"] > 0
    assert 0 < note["largest_share"] <= 1
    free = Plan(tiny(), rows, None, tokenizer)
    source = {key: value for key, value in source.items() if key != "clip"}
    other = cltk.MAS(1.0, old, block=16) if method == "mas" else cltk.MITIGATORS[method](1.0, source)
    other.setup(free)
    assert free.notes[method]["clip"] is None
    assert free.notes[method]["digest"] != note["digest"]
