"""Named tensors: {parameter name: tensor}. The only file that knows DTensor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cltk.errors import InputError
from cltk.files import write_atomic

Named = dict[str, Tensor]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that training changes, each once (a tied tensor has one name), without wrapper prefixes."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield clean(name), parameter


def clean(name: str) -> str:
    """The parameter's name in the unwrapped model: without the prefixes of DDP, torch.compile and checkpointing."""
    parts = name.split(".")
    if parts[0] == "module":
        parts = parts[1:]
    return ".".join(part for part in parts if part not in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))


def snapshot(model: nn.Module) -> Named:
    """A copy of every trainable parameter, in its own dtype and on its own device."""
    return {name: parameter.detach().clone() for name, parameter in trainable(model)}


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` placed as `parameter` is: same device, and the same shards under FSDP2."""
    if hasattr(parameter, "device_mesh") and not hasattr(tensor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        mesh = parameter.device_mesh
        return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements)  # type: ignore[attr-defined]
    return tensor.to(parameter.device)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; the tensor itself elsewhere. Shares memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one (collective: every rank must call it); the tensor itself elsewhere.

    A shard that waits in CPU memory goes to its mesh's devices for it, which alone can exchange it.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    return tensor.to(tensor.device_mesh.device_type).full_tensor()  # type: ignore[attr-defined]


def all_whole(named: Named) -> Named:
    """`whole`, one by one, each put into CPU memory: what a checkpoint holds. Every rank must call it."""
    return {name: whole(tensor).cpu() for name, tensor in named.items()}


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """Forward in the weights' own dtype inside.

    Trainer's bf16 and fp16 put accelerate's autocast around forward and leave it there when training is over: the tuned model
    would be measured in another precision than the start model.
    """
    inner: Any = getattr(model, "module", model)
    plain = vars(inner).get("_original_forward")
    if plain is None:
        yield
        return
    wrapped, inner.forward = inner.forward, plain
    try:
        yield
    finally:
        inner.forward = wrapped


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, weights and saved buffers are rounded to `dtype`, as `from_pretrained(dtype=...)` reads them; afterwards they are
    the very tensors they were. None: as they are.

    What is not saved (rotary frequencies) and what the model's class keeps in float32 stays. Inside, both are in memory.
    """
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    saved = {} if dtype is None else model.state_dict(keep_vars=True)
    found = {  # tied weights once
        id(tensor): tensor for name, tensor in saved.items() if tensor.is_floating_point() and not strict & set(name.split("."))
    }
    before = [(tensor, tensor.data) for tensor in found.values()]
    try:
        for tensor, data in before:
            tensor.data = data.to(dtype)
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


def reshard(model: nn.Module) -> None:
    """Back to shards after passes without a backward: FSDP2 leaves its root whole, and `zero_grad` would miss the shards'."""
    part: Any
    for part in model.modules():
        if hasattr(part, "reshard"):
            part.reshard()


def dot(a: Iterable[Tensor], b: Iterable[Tensor]) -> Tensor:
    """sum_i <a_i, b_i> over all tensors and all shards, in float32, a scalar."""
    total = sum((x.float() * y.float()).sum() for x, y in zip(a, b, strict=True))
    if not isinstance(total, Tensor):
        return torch.zeros(())
    return total.full_tensor() if hasattr(total, "full_tensor") else total


def digest(tensors: Mapping[str, Tensor] | nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes in name order: equal weights, equal digest, wherever they are."""
    model = tensors if isinstance(tensors, nn.Module) else None
    if isinstance(tensors, nn.Module):
        tensors = tensors.state_dict()
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta and model is not None:
            tensor = _offloaded(model, name)
        if hasattr(tensor, "full_tensor"):
            tensor = tensor.full_tensor()
        tensor = tensor.cpu().contiguous()
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():  # numpy has no bfloat16: hash the bytes
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _offloaded(model: nn.Module, name: str) -> Tensor:
    """A weight that accelerate keeps in main memory or on disk between forwards. Raises InputError for any other."""
    from accelerate.utils import align_module_device, has_offloaded_params

    place, _, leaf = name.rpartition(".")
    module = model.get_submodule(place)
    if has_offloaded_params(module):
        with align_module_device(module, "cpu"):
            return getattr(module, leaf).detach().clone()
    raise InputError(f"{type(model).__name__}: {name} has no values (meta device); load its weights first")


def save_tree(path: Path, tree: dict[str, Any]) -> None:
    """Write a nested dict of tensors, numbers, strings and lists as one safetensors file, atomically, with its sha256."""
    leaves: Named = {}

    def outline(node: Any, key: str) -> Any:
        if isinstance(node, Tensor):
            leaves[key] = node.detach().cpu().contiguous()
            return {"__tensor__": key}
        if isinstance(node, dict):
            return {str(name): outline(value, f"{key}/{name}") for name, value in node.items()}
        return node

    text = json.dumps(outline(tree, ""))
    metadata = {"tree": text, "sha256": _seal(text, leaves)}
    write_atomic(path, lambda temporary: save_file(leaves, temporary, metadata=metadata))


def load_tree(path: Path) -> dict[str, Any]:
    """Read what `save_tree` wrote. Raises InputError when the file is truncated, altered or not one of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tree = json.loads(metadata["tree"])
            leaves = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is not a dict
    except Exception as error:
        raise InputError(f"{path}: damaged or not a cltk state file ({error}); delete it to start afresh") from None
    if metadata.get("sha256") != _seal(metadata["tree"], leaves):
        raise InputError(f"{path}: damaged (its sha256 does not fit its contents); delete it to start afresh")

    def fill(node: Any) -> Any:
        if isinstance(node, dict):
            return leaves[node["__tensor__"]] if "__tensor__" in node else {name: fill(value) for name, value in node.items()}
        return node

    return fill(tree)


def _seal(text: str, leaves: Named) -> str:
    return hashlib.sha256(f"{digest(leaves)} {text}".encode()).hexdigest()
