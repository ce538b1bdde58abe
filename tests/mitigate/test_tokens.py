"""Token weights against loops over tokens, and the class inside a plain loop and a Trainer."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

import cltk
from cltk.data import Collator
from cltk.errors import InputError
from cltk.forward.packing import pack
from cltk.mitigate.interface import Plan, Run, counted, targets
from cltk.mitigate.tokens import TokenWeights, dft, eaft, flow, random_mask, samples_of, stm, talr

ROWS = [
    {"input_ids": [i + 3, 9, 2 + i, 6, 7, 30 + i, 8][: 3 + i], "labels": [-100, 9, 2 + i, 6, 7, 30 + i, 8][: 3 + i]}
    for i in range(5)
]


def losses(n=9, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 3


def test_stm_masks_unlikely_tokens():
    expected = [1.0 if math.exp(loss) <= 2.5 else 0.0 for loss in losses().tolist()]
    assert stm(losses()).tolist() == expected
    assert 0 < sum(expected) < 9


def test_talrs_temperature_is_the_median_over_samples():
    """Ten easy tokens of one sample do not outvote two hard samples."""
    values, sample = torch.tensor([0.1] * 10 + [2.0, 4.0] + [6.0]), torch.tensor([0] * 10 + [1, 1] + [2])
    torch.testing.assert_close(talr(values, sample), torch.exp(-values / 3.0))  # sample means 0.1, 3, 6


def test_talr_and_dft_are_powers_of_the_probability():
    values = losses()
    tau = statistics.median(values.tolist())
    one = torch.arange(len(values))  # every token a sample of its own
    torch.testing.assert_close(talr(values, one), torch.tensor([math.exp(-v) ** (1 / tau) for v in values.tolist()]))
    torch.testing.assert_close(talr(values, one, 0.7), torch.tensor([math.exp(-v) ** (1 / 0.7) for v in values.tolist()]))
    torch.testing.assert_close(dft(values), torch.tensor([math.exp(-v) for v in values.tolist()]))
    assert torch.isfinite(talr(torch.zeros(3), torch.zeros(3, dtype=torch.long))).all()


def test_flow_weighs_samples():
    values, samples = losses(), torch.tensor([0, 0, 2, 2, 2, 3, 5, 5, 5])
    means = {
        s: statistics.mean(v for v, t in zip(values.tolist(), samples.tolist(), strict=True) if t == s) for s in (0, 2, 3, 5)
    }
    for tau in (None, 0.8):
        used = tau or sorted(means.values())[1]  # torch takes the lower of the two in the middle
        torch.testing.assert_close(
            flow(values, samples, tau), torch.tensor([math.exp(-means[s] / used) for s in samples.tolist()])
        )


def test_eaft_is_the_normalised_entropy_of_the_top():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(2)) * 3
    expected = []
    for row in logits.tolist():
        best = sorted((math.exp(v) for v in row), reverse=True)[:7]
        expected.append(-sum(p / sum(best) * math.log(p / sum(best)) for p in best) / math.log(7))
    torch.testing.assert_close(eaft(logits, 7), torch.tensor(expected))
    assert eaft(torch.zeros(1, 40)).item() == pytest.approx(1)
    assert eaft(torch.eye(40)[:1] * 99).item() == pytest.approx(0, abs=1e-6)
    assert eaft(torch.zeros(1, 5), 20).item() == pytest.approx(1)  # a vocabulary smaller than K


def test_random_masks_are_a_samples_own():
    tokens, samples = torch.randint(50, (4000,), generator=torch.Generator().manual_seed(3)), torch.arange(4000) // 100
    whole = random_mask(tokens, samples, 0.3)
    assert whole.mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(random_mask(tokens[300:400], torch.zeros(100, dtype=torch.long), 0.3), whole[300:400])
    assert not torch.equal(random_mask(tokens, samples, 0.3, seed=1), whole)
    assert random_mask(tokens, samples, 0.0).all()


def test_samples_are_rows_or_runs_of_positions():
    padded, packed = Collator(0)(ROWS), pack(ROWS, [[4, 0], [1, 3, 2]], 0)
    assert samples_of(padded).tolist() == [i for i, row in enumerate(ROWS) for label in row["labels"][1:] if label != -100]
    found = samples_of(packed)
    sizes = [int((found == s).sum()) for s in found.unique()]
    assert sizes == [len(ROWS[i]["labels"]) - 1 for i in (4, 0, 1, 3, 2)]


@pytest.mark.parametrize("setting", ["stm", "flow", "random", "talr", "eaft"])
def test_packed_rows_weigh_as_padded_ones(setting, tiny):
    """Sum of w l is the same sum, whatever the layout (with a fixed scale)."""
    sums = []
    for batch in (Collator(0)(ROWS), pack(ROWS, [[4, 0], [1, 3, 2]], 0)):
        model = tiny()
        method = TokenWeights(setting, tau=3.0, rescale=False)
        method.setup(Plan(model, ROWS, None))
        method.start(Run(model, model))
        hidden = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        sums.append(method.loss({**batch, "divisor": 1}, hidden[counted(batch)]))
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)
    assert abs(sums[0].item()) > 0.1


def slow_total(setting, method, batch, logits, start_logits):
    """sum w l / N and w, token by token."""
    rows = []
    for b, t in counted(batch).nonzero().tolist():
        label = batch["labels"][b, t + 1]
        rows.append((b, F.cross_entropy(logits[b, t], label), F.cross_entropy(start_logits[b, t], label).item(), logits[b, t]))
    nll = [row[1].item() for row in rows]
    if setting == "stm":
        weights = [float(math.exp(start) <= method.tau) for _, _, start, _ in rows]
    elif setting == "talr":
        of_sample = [[loss for loss, row in zip(nll, rows, strict=True) if row[0] == b] for b in {row[0] for row in rows}]
        tau = statistics.median_low([statistics.fmean(losses) for losses in of_sample])
        weights = [math.exp(-loss / tau) for loss in nll]
    elif setting == "dft":
        weights = [math.exp(-loss) for loss in nll]
    else:
        mean = {b: statistics.mean(r[2] for r in rows if r[0] == b) for b, *_ in rows}
        weights = [math.exp(-mean[b] / method.tau) for b, *_ in rows]
    weights = [max(w, method.floor) for w in weights]
    rescaled = method.rescale or setting == "flow"  # the batch is all the data
    scale = statistics.mean(weights) if rescaled else 1.0
    return sum(w / scale * row[1] for w, row in zip(weights, rows, strict=True)) / len(rows)


@pytest.mark.parametrize(("setting", "tau"), [("stm", 300.0), ("talr", None), ("dft", None), ("flow", 5.0)])
@pytest.mark.parametrize(("floor", "rescale"), [(0.0, True), (0.4, True), (0.0, False)])
def test_total_loss_and_its_gradient(setting, tau, floor, rescale, tiny):
    if setting == "flow" and not rescale:
        pytest.skip("flow's scale is of the data")
    model, start, batch = tiny(seed=1), tiny(), Collator(0)(ROWS)
    method = TokenWeights(setting, tau=tau, floor=floor, rescale=rescale)
    method.setup(Plan(start, ROWS, None))
    method.start(Run(model, model))
    where = counted(batch)

    def gradient(loss):
        return torch.autograd.grad(loss, list(model.parameters()))

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    ours = F.cross_entropy(logits[where], targets(batch)) + method.loss({**batch, "divisor": where.sum()}, logits[where])
    again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    with torch.no_grad():
        before = start(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    slow = slow_total(setting, method, batch, again, before)
    assert ours.item() == pytest.approx(slow.item(), rel=1e-4)
    for a, b in zip(gradient(ours), gradient(slow), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_trains_the_weighted_sum(accumulation, tiny, tmp_path):
    """Against a Trainer whose own loss is weighted: the divisor is the trainer's, over micro-batches."""

    class Weighted(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[counted(inputs)]
            nll = F.cross_entropy(logits, targets(inputs), reduction="none")
            return (nll * torch.exp(-nll).detach()).sum() / num_items_in_batch

    def train(cls, mitigators):
        args = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, optim="sgd",
            learning_rate=0.5, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = cltk.attach(cls(model=tiny(), args=args, train_dataset=ROWS, data_collator=Collator(0)), mitigators)
        trainer.train()
        return torch.nn.utils.parameters_to_vector(trainer.model.parameters()), trainer

    ours, trainer = train(Trainer, [TokenWeights("dft", rescale=False)])
    torch.testing.assert_close(ours, train(Weighted, [])[0], rtol=1e-4, atol=1e-6)
    assert (ours - train(Trainer, [])[0]).abs().max() > 1e-3
    assert trainer.cltk_plan.notes["token_weights"]["tokens"] > 0


def test_the_masked_share_is_noted(tiny):
    model, batch, plan = tiny(), Collator(0)(ROWS), Plan(tiny(), ROWS, None)
    method = TokenWeights("stm", tau=310.0)
    method.setup(plan)
    method.start(Run(model, model))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[counted(batch)]
    method.loss({**batch, "divisor": 1}, logits)
    method.finish(Run(model, model))
    nll = F.cross_entropy(logits, targets(batch), reduction="none")
    note = plan.notes["token_weights"]
    assert 0 < note["masked"] < 1
    assert note["masked"] == pytest.approx((nll > math.log(310)).float().mean().item())


def test_all_masked_trains_nothing_and_nothing_is_counted(tiny):
    model, batch = tiny(), Collator(0)(ROWS)
    method = TokenWeights("stm", tau=1.0001)
    method.setup(Plan(model, ROWS, None))
    method.start(Run(model, model))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[counted(batch)]
    total = F.cross_entropy(logits, targets(batch)) + method.loss({**batch, "divisor": len(logits)}, logits)
    assert total.item() == pytest.approx(0, abs=1e-5)
    assert method.loss({**batch, "labels": torch.full_like(batch["labels"], -100), "divisor": 1}, logits[:0]) is None


@pytest.mark.parametrize("wrong", [{"setting": "x"}, {"tau": 0}, {"floor": 2}, {"top_k": 1}, {"rate": 1.0}])
def test_refusals(wrong, tiny):
    with pytest.raises(InputError, match="token_weights"):
        TokenWeights(**({"setting": "stm"} | wrong))
    with pytest.raises(InputError, match="flow needs"):
        TokenWeights("flow").setup(Plan(tiny(), [{"text": "a"}], None))


def test_two_weights_of_a_loss_are_refused():
    """w1 + w2 - 1: a token that both weigh 0 would be trained away from."""
    from cltk.hosts.order import check_order

    with pytest.raises(InputError, match="TokenWeights stands twice"):
        check_order([cltk.TokenWeights("stm"), cltk.TokenWeights("dft")])
