"""`cltk estimate`: what a training will hold in memory, from the model's config alone (meta device; no weights, no data).

Per GPU:   peak = weights + optimiser + mitigators + the largest of four moments

    loss       saved(L layers) + logits                  + gradients, where they are accumulated
    layer      saved(L layers) + head's gradient + work    (with checkpointing: L inputs + saved(1))
    embedding  gradients + work of a layer + one dense gradient of the embedding, where it is tied to the head
    step       gradients + the optimiser's and the mitigators' temporaries

Backward frees a layer's saved tensors while it makes its gradients, and both are linear in the layer, so that the peak is at
an end. What one layer saves for its backward pass, bytes a token; h hidden, q = heads x head size, k = key-value heads x
head size, m intermediate, a bytes of an activation (2 in bfloat16 and float16):

    2 norms        2 (4 h + a h + 4)    the input in float32, its normalised value, 1 / rms (LayerNorm: a h + 8, the input)
    q, k, v        a h              one input for three products; autocast of float32 weights casts it for each: 3 a h
    attention      a (2 q + 2 k) + 4 heads          q, k, v, output, log-sum-exp; fused kernels: no T x T matrix, no mask
    output         0                its input is attention's output
    MLP            a h + 4 a m      input (autocast: 2 a h), gate, silu(gate), up, their product (without gate: a h + 2 a m)
    residuals      0                an addition saves nothing

So a Llama layer in float32 saves 24 h + 8 q + 8 k + 4 heads + 16 m + 8 bytes a token. Behind all layers: 4 h + 2 a h for the
last norm and the head, and 12 V for each position whose loss counts: float32 log-probabilities, their gradient, and the logits'
gradient at once (the forward pass holds less; `cltk run`, whose loss makes no float32 copies, holds 2 a V). With checkpointing
a layer keeps its input, a h. `work` is a layer's gradients under way: a (3 m + h) a token. Frozen norms (adapters) do not save
the normalised value; below the lowest trained
parameter nothing is saved.

Two more moments are those of `cltk run`, which has whole models on every GPU before and behind the training, sharded or not:

    start      one model + what methods keep of it whole       it is read to every GPU, scored, and sharded by the training
    scoring    two models: the tuned one, gathered, and the start model, whose KL is taken     (one with evals.kl_rows: 0);
               with evals.dtype at least one model and its copy in that

In a Trainer of your own (`cltk.attach`) these two are yours to count: `training` is the peak without them.

What is sharded: weights, gradients, moments, and a method's copies beside them. Whole on every GPU: the start model of KL and
LwF, the start weights of averages (WiSE-FT, TIES, ...), and under DeepSpeed all anchors and importance. Whole in each process's
CPU memory: anchors and importance under FSDP, beside the shards.

Not counted: the CUDA context (about 0.5 GiB), fragmentation, logits and caches of evaluation, padding masks (these
repeat keys and values to q), attention without a fused kernel, mixtures of experts.

Measured (benchmarks/estimate.py, SmolLM2-135M in float32 on a CPU): the estimate is 94 to 99 % of what plain training, EWC,
LoRA and checkpointing held. glibc, left as it is, keeps freed blocks: processes were 13 to 37 % above the estimate. bfloat16,
autocast and what is gathered for a layer follow the same derivation and have not been measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cltk.errors import InputError
from cltk.run.methods import method_name, nearest
from cltk.run.needs import Needs, needs_of, split
from cltk.run.shape import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHARDINGS = ("none", "ddp", "fsdp", "zero1", "zero2", "zero3")
STATES = {  # optimiser -> bytes of its state a parameter of so many bytes
    "adamw_torch": lambda size: 2 * size, "adamw_torch_fused": lambda size: 2 * size, "adamw_8bit": lambda size: 2,
    "adamw_bnb_8bit": lambda size: 2, "adafactor": lambda size: 0, "lion_32bit": lambda size: size, "lion_8bit": lambda size: 1,
    "rmsprop": lambda size: size, "adagrad": lambda size: size, "sgd": lambda size: 0,
}  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """How it is trained. `counted` is the share of positions whose loss counts (and whose logits are made)."""

    dtype: str = "float32"
    optim: str = "adamw_torch_fused"
    gpus: int = 1
    sharding: str = "none"
    batch: int = 8
    length: int = 512
    accumulation: int = 1
    checkpointing: bool = False
    autocast: bool = False
    counted: float = 1.0
    compared: bool = True  # `cltk run` takes the KL between start and tuned model behind the training
    scored: str | None = None  # evals.dtype

    def __post_init__(self) -> None:
        for key, known in (("dtype", BYTES), ("optim", STATES), ("sharding", SHARDINGS)):
            if getattr(self, key) not in known:
                raise InputError(
                    f"estimate: {key} {getattr(self, key)!r} is not known{nearest(str(getattr(self, key)), known)}"
                )
        for key in ("gpus", "batch", "length", "accumulation"):
            if getattr(self, key) < 1:
                raise InputError(f"estimate: {key} is {getattr(self, key)}; give at least 1")
        if not 0 < self.counted <= 1:
            raise InputError(f"estimate: counted is {self.counted}; give a share above 0, at most 1")
        if self.sharding == "none" and self.gpus > 1:
            raise InputError(f"estimate: {self.gpus} GPUs need a sharding: {', '.join(SHARDINGS[1:])}")


@dataclass(frozen=True)
class Estimate:
    """Bytes per GPU. The parts are what stands at the training's peak, so that they add up to it."""

    method: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    mitigators: int
    activations: int  # with temporaries
    training: int  # their sum: the peak in a Trainer of one's own
    peak: int  # of `cltk run`
    moment: str  # of the peak: loss, layer, embedding or step; start or scoring
    host: int  # CPU memory of each process for mitigators (on a machine without GPU it is the same memory)
    rule: int  # 4 x parameters x bytes, on all GPUs together
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def layer_bytes(shape: Shape, setup: Setup) -> int:
    """What one decoder layer saves for backward, a token: the table above."""
    narrow = setup.autocast or setup.dtype != "float32"
    size, stream = 2 if narrow else 4, BYTES[setup.dtype]
    h, q, k, m = shape.hidden, shape.query, shape.shared, shape.inner
    cast = narrow and (setup.dtype == "float32" or bool(shape.adapters))  # every product has an input of its own
    at = 4 if shape.adapters and not setup.autocast else size
    norms = 2 * (4 * h + (0 if shape.adapters else stream * h) + 4) if shape.rms else 2 * (stream * h + 8)
    attention = size * (2 * q + 2 * k) + 4 * shape.heads
    mlp = (4 if shape.gated else 2) * size * m
    inputs = at * h * ((5 if shape.gated else 4) if cast else 2)
    if cast and shape.adapters:
        inputs += at * (q + m)
    return norms + attention + mlp + inputs + at * shape.ranks


def estimate(shape: Shape, setup: Setup, mitigators: Sequence[Any] = ()) -> Estimate:
    """The formulas at the top of this file."""
    needs, parts = needs_of(mitigators), _divisors(setup)
    size = _size(setup)
    trained = shape.adapters or shape.trained
    grad = 4 if shape.adapters else size
    weights = (shape.parameters * size + shape.adapters * 4) // parts["weights"]
    gradients = trained * grad // parts["gradients"]
    master = 4 if setup.sharding.startswith("zero") and grad == 2 else 0  # DeepSpeed: float32 weights and moments
    state = STATES[setup.optim](4 if master else grad) + master
    optimizer = trained * state // parts["optimizer"]
    whole = _whole(shape, setup, needs)
    beside = trained * (needs.own * grad + needs.wide * 4) / (parts["weights"] if setup.sharding == "fsdp" else 1)
    kept = round(whole + beside + needs.floats(shape) * 4)
    moments = _moments(shape, setup, needs, gradients, grad)
    moment = max(moments, key=lambda name: sum(moments[name]))
    there, rest = moments[moment]
    training = weights + there + optimizer + kept + rest
    read, before = shape.parameters * BYTES[setup.dtype], trained * (needs.parked * size + needs.parked_wide * 4)
    copy = shape.parameters * BYTES[setup.scored] if setup.scored not in (None, setup.dtype) else 0
    around = {
        "start": read + round(whole + before) + copy, "scoring": read + max(read if setup.compared else 0, copy),
    }  # fmt: skip
    peak, at = max((training, moment), *((held, name) for name, held in around.items()), key=lambda pair: pair[0])
    return Estimate(
        method_name(list(mitigators)), shape.parameters, trained, weights, there, optimizer, kept, rest, training, peak, at,
        _host(shape, setup, needs, grad), 4 * shape.parameters * BYTES[setup.dtype],
        tuple(_notes(setup, mitigators, needs, at, training)),
    )  # fmt: skip


def _size(setup: Setup) -> int:
    """Bytes of a trained weight: accelerate keeps float32 weights under FSDP2 where products are narrow (train.bf16)."""
    return 4 if setup.sharding == "fsdp" and setup.autocast else BYTES[setup.dtype]


def _whole(shape: Shape, setup: Setup, needs: Needs) -> float:
    """What methods keep whole on every GPU, taken from the model as it was read."""
    plain = shape.parameters if shape.adapters else shape.trained
    return (needs.frozen * shape.parameters + needs.whole * plain) * BYTES[setup.dtype]


def _host(shape: Shape, setup: Setup, needs: Needs, grad: int) -> int:
    trained, narrow = shape.adapters or shape.trained, 4 if shape.adapters else BYTES[setup.dtype]
    host = trained * (needs.host * grad + needs.host_wide * 4)
    if setup.sharding == "fsdp":
        host = host / setup.gpus + trained * (needs.parked * narrow + needs.parked_wide * 4)
    return round(host + needs.aside * 4 * shape.parameters)


def _notes(setup: Setup, mitigators: Sequence[Any], needs: Needs, moment: str, training: int) -> list[str]:
    """What the numbers leave unsaid: methods that are not known or refused there, and what can be done about whole models."""
    from cltk.mitigate import catalog

    cards, names = catalog.cards(), sorted({split(entry)[0] for entry in mitigators})
    notes = [f"{name}: its state is not known here and counts as none" for name in sorted(needs.unknown)]
    engine = {"none": "Trainer", "ddp": "DDP", "fsdp": "FSDP2"}.get(setup.sharding, "DeepSpeed")
    refused = [name for name in names if name in cards and engine not in cards[name].engines]
    notes += [f"{name}: refused under {engine}; it runs under {', '.join(cards[name].engines)}" for name in refused]
    if moment in ("start", "scoring") and setup.gpus > 1:
        notes.append(
            f"`cltk run` reads and scores whole models on every GPU, and does not run on smaller ones; the training alone holds"
            f" {training / 1e9:.2f} GB at most (cltk.attach in a Trainer of your own)"
        )
    return notes


def _moments(shape: Shape, setup: Setup, needs: Needs, gradients: int, grad: int) -> dict[str, tuple[int, int]]:
    """Moment -> (gradients, activations and temporaries)."""
    narrow = setup.autocast or setup.dtype != "float32"
    size, stream = 2 if narrow else 4, BYTES[setup.dtype]
    tokens, h, layer = setup.batch * setup.length, shape.hidden, layer_bytes(shape, setup)
    saved = tokens * shape.layers * (stream * h if setup.checkpointing else layer)
    saved += needs.second(setup.batch) * shape.layers * (stream * h if setup.checkpointing else layer)
    one = tokens * layer if setup.checkpointing else 0
    counted = round(tokens * setup.counted)
    logits = tokens * (4 + stream) * h + counted * (size * h + (12 + needs.logits) * shape.vocabulary)
    work = tokens * size * (3 * shape.inner + h)
    always = 0
    if setup.sharding in ("fsdp", "zero3"):
        always = 2 * size * shape.largest + size * shape.largest  # this layer and the next, gathered, and its gradient
    if setup.sharding == "ddp":
        always = gradients  # buckets
    if setup.autocast and setup.dtype == "float32":
        always += 2 * (shape.parameters - shape.embedding)  # autocast's copies of the weights
    so_far = gradients if setup.accumulation > 1 else 0
    head = 0 if so_far else shape.head * grad // _divisors(setup)["gradients"]
    dense = shape.embedding * grad if shape.tied or so_far else 0
    temporaries = round((shape.adapters or shape.trained) * grad * needs.step / _divisors(setup)["weights"])
    return {
        "loss": (so_far, saved + logits + always),
        "layer": (so_far or head, saved + one + work + always),
        "embedding": (gradients, max(tokens * layer + work if shape.layers else 0, dense) + always),
        "step": (gradients, temporaries + (gradients if setup.sharding == "ddp" else 0)),
    }


def _divisors(setup: Setup) -> dict[str, int]:
    """Over how many GPUs each part is spread."""
    level = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}[setup.sharding]
    return {
        "optimizer": setup.gpus if level >= 1 else 1,
        "gradients": setup.gpus if level >= 2 else 1,
        "weights": setup.gpus if level >= 3 else 1,
    }
