"""A model's shape, from its config alone (meta device): what the formulas of `estimate.py` need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltk.errors import InputError
from cltk.run.needs import split

LLAMA2 = {  # hidden, intermediate, layers, heads, key-value heads: for where the hub is not in reach
    "7b": (4096, 11008, 32, 32, 32), "13b": (5120, 13824, 40, 40, 40), "70b": (8192, 28672, 80, 64, 8),
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the formulas need of a model; parameters in numbers, not bytes."""

    parameters: int
    trained: int
    layers: int  # through which a gradient flows
    largest: int  # parameters of the largest block: a layer, or the embedding
    hidden: int
    query: int
    shared: int  # width of the keys
    heads: int
    inner: int
    gated: bool
    rms: bool
    vocabulary: int
    embedding: int  # parameters of the input embedding, if trained
    head: int  # parameters of the head, if trained
    tied: bool
    adapters: int = 0  # parameters that LoRA adds
    ranks: int = 0  # sum of the ranks of a layer's adapters


def meta_model(spec: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The model without weights. The Llama 2 sizes are known without the hub.

    Raises:
        InputError: no such model, or its config cannot be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    from cltk.models import locate_model
    from cltk.models.origin import Origin

    origin = Origin.of(spec)
    where = locate_model(origin)
    size = where.removeprefix("meta-llama/Llama-2-").removesuffix("-hf").removesuffix("-chat")
    try:
        if where.startswith("meta-llama/Llama-2-") and size in LLAMA2:
            hidden, inner, layers, heads, shared = LLAMA2[size]
            config: Any = LlamaConfig(
                hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=shared, vocab_size=32000,
            )  # fmt: skip
        else:
            config = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code, **origin.files())
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
        raise InputError(f"model {spec}: its config cannot be had ({reason[:200]})") from None


def shape_of(model: Any, mitigators: Sequence[Any] = ()) -> Shape:
    """Read off a (meta) model, with what these YAML entries freeze and add."""
    from cltk.mitigate.freezing import layer_of

    config = model.config.get_text_config()
    freeze(model, mitigators)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    extra, ranks = adapted(model, mitigators)
    layers = int(config.num_hidden_layers)
    by_layer: dict[int | None, int] = {}
    for name, size in sizes.items():
        by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0) + size
    embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    lowest = 0 if embed.requires_grad or extra else min((i for n in trained if (i := layer_of(n)) is not None), default=layers)
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = [name for name, _ in model.named_modules()]
    return Shape(
        sum(sizes.values()), 0 if extra else sum(trained.values()), layers - lowest,
        max(max(by_layer.values()), embed.numel()), config.hidden_size, heads * size,
        size * int(getattr(config, "num_key_value_heads", None) or heads), heads,
        int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size),
        any("gate" in name for name in names), any("RMS" in type(module).__name__ for module in model.modules()),
        config.vocab_size, embed.numel() * (embed.requires_grad and not extra),
        head.numel() * (head.requires_grad and not extra),
        embed is head, extra, ranks,
    )  # fmt: skip


def freeze(model: Any, entries: Sequence[Any]) -> None:
    """What the methods leave untrained, done to a (meta) model."""
    from cltk.mitigate import Freeze, Plan
    from cltk.mitigate.sparse import draw_frozen

    for name, arguments in map(split, entries):
        if name == "freeze":
            Freeze(**arguments).setup(Plan(model, None, None))
        if name == "hft":
            frozen = draw_frozen(
                (n for n, _ in model.named_parameters()), arguments.get("fraction", 0.5), arguments.get("seed", 0)
            )
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and parameter_name not in frozen)


def adapted(model: Any, entries: Sequence[Any]) -> tuple[int, int]:
    """Parameters of LoRA's adapters, r (in + out) for each layer they stand in, and the ranks of one decoder layer."""
    from cltk.mitigate.freezing import layer_of

    found = next((arguments for name, arguments in map(split, entries) if name == "lora"), None)
    r = 0 if found is None else int(found.get("r", 16))
    if not r:
        return 0, 0
    targets = (found or {}).get("targets", "all-linear")
    head, total, ranks = model.get_output_embeddings(), 0, 0
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        linear = weight is not None and type(module).__name__ in ("Linear", "Conv1D") and module is not head
        if linear and (
            targets == "all-linear" or name.rpartition(".")[2] in ([targets] if isinstance(targets, str) else targets)
        ):
            total += r * sum(weight.shape)
            ranks += r * (layer_of(name + ".weight") == 0)
    return total, ranks
