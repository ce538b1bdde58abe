"""`cltk fisher` and `estimate`: what prepares a training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cltk.cli.options import Command, apart, device_option, json_option, put_json, to_stdout
from cltk.cli.texts import HOW, memory
from cltk.errors import InputError
from cltk.progress import console


def add(command: Command) -> None:
    """Options of what prepares a training."""
    sub = command("fisher", fisher, "compute the diagonal Fisher information of a model on old-domain text")
    sub.add_argument("model", help="folder, hub id or asset:NAME")
    sub.add_argument("--memory", required=True, help=f"old-domain text: a file, asset:NAME/FILE, hub id, {HOW % 'path'}")
    sub.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    sub.add_argument("--samples", type=int, help="sequences to use; all when not given")
    sub.add_argument("--kind", choices=["mc", "empirical", "exact", "mas"], default="mc")
    sub.add_argument("--block", type=int, default=256, help="tokens of a sequence")
    sub.add_argument("--batch-size", type=int, default=8)
    sub.add_argument("--normalize", choices=["mean"], default=None)
    sub.add_argument("--floor", type=float, default=0.0, help="add so many times the mean to every element")
    sub.add_argument("--rtol", type=float, help="stop at this relative standard error of the trace, such as 0.05")
    sub.add_argument("--clip", type=float, metavar="NORM", help="the largest norm of a sequence's gradient (default: none)")
    sub.add_argument("--seed", type=int, default=0)
    device_option(sub)
    sub.add_argument("--autocast", action="store_true", help="gradients in bfloat16, sums in float32: faster, less exact")
    json_option(sub)

    sub = command("estimate", estimate, "bytes a training will hold on each GPU, from the model's config alone")
    sub.add_argument("model", nargs="?", help="folder, hub id or asset:NAME (default: the YAML's)")
    sub.add_argument("--yaml", type=Path, help="an experiment: its settings, a line for each of its methods")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: float32)")
    sub.add_argument("--optim", help="as in TrainingArguments (default: adamw_torch_fused)")
    sub.add_argument("--method", nargs="+", metavar="NAME", default=[], help="mitigators, with their default arguments")
    sub.add_argument("--gpus", type=int)
    sub.add_argument("--sharding", choices=["none", "ddp", "fsdp", "zero1", "zero2", "zero3"])
    sub.add_argument("--batch", type=int, help="rows of a micro-batch on one GPU (default: 8)")
    sub.add_argument("--length", type=int, help="tokens of a row (default: 512)")
    sub.add_argument("--accumulation", type=int, help="micro-batches a step (default: 1)")
    sub.add_argument("--counted", type=float, help="share of positions whose loss counts (default: 1)")
    sub.add_argument("--checkpointing", action="store_true", default=None, help="gradient checkpointing")
    sub.add_argument("--autocast", action="store_true", default=None, help="bfloat16 products of float32 weights (train.bf16)")
    json_option(sub)


def fisher(options: argparse.Namespace) -> int:
    """`cltk fisher`: compute and save an importance; continues an interrupted one."""
    from cltk.data.memories import memory_view
    from cltk.mitigate import fisher as compute
    from cltk.models import load_model, on
    from cltk.progress import Bar

    if options.out.suffix != ".safetensors":
        raise InputError(f"--out {options.out}: the file must end in .safetensors")
    with on(options.device):
        model, tokenizer = load_model(options.model)
    rows = memory_view(memory(options.memory), tokenizer, options.block, options.samples)
    total = min(len(rows), options.samples or len(rows))
    partial = options.out.with_suffix(".partial.safetensors")
    with Bar() as bar:
        result = compute(
            model, rows, options.kind, options.samples, options.batch_size, options.normalize, options.seed, options.floor,
            options.rtol, progress=lambda done, *_: bar("fisher", done, total), partial=partial,
            autocast=options.autocast, clip=options.clip,
        )  # fmt: skip
    result.save(options.out)
    partial.unlink(missing_ok=True)
    keys = ["kind", "level", "sequences", "tokens", "relative_se", "largest_share", "largest_of", "largest_row"]
    keys += ["clip", "clipped"] if options.clip else []
    shown = {key: result.info[key] for key in keys if key in result.info}
    with apart(options.json):
        print(f"{options.out}: {json.dumps(shown)}")
    put_json(options.json, {"importance": str(options.out), **result.info})
    return 0


def estimate(options: argparse.Namespace) -> int:
    """`cltk estimate`: memory before money."""
    from dataclasses import fields

    from cltk.run.estimate import Setup
    from cltk.run.estimates import estimate_model, estimate_yaml, table

    given = {f.name: v for f in fields(Setup) if (v := getattr(options, f.name, None)) is not None}
    if options.yaml is not None and options.method:
        raise InputError("estimate: --yaml names its methods itself; drop --method, or --yaml")
    if options.yaml is None and options.model is None:
        raise InputError("estimate: name a model, or an experiment with --yaml")
    if options.yaml is not None:
        found = estimate_yaml(options.yaml, options.model, **given)
    else:
        found = [estimate_model(options.model, Setup(**given), options.method)]
    put_json(options.json, [one.to_json() for one in found])
    if not to_stdout(options.json):
        console().print(table(found))
    return 0
