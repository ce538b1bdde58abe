"""All layers of a 135 M model for a few rows of one decoding step: x W^T, as `nn.Linear` has it, against (W x^T)^T.

    python benchmarks/products.py            # medians of seven in turns, as rows of a Markdown table, and results/products.json
    python benchmarks/products.py --quick    # two layers, writes nothing

Weights are read from memory: together they are larger than any cache.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import driver
import torch
from torch import nn

from cltk.forward import products

WIDTH, INNER, SMALL, LAYERS, VOCABULARY = 576, 1536, 192, 30, 49152  # SmolLM2-135M's
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def main() -> None:
    parser = driver.arguments_of(__doc__)
    parser.set_defaults(rounds=7)
    asked = parser.parse_args()
    shapes = [(WIDTH, WIDTH), (WIDTH, SMALL), (WIDTH, SMALL), (WIDTH, WIDTH), (WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
    layers = 2 if asked.quick else LAYERS
    model = nn.ModuleList([nn.Linear(*shape, bias=False) for _ in range(layers) for shape in shapes])
    model.append(nn.Linear(WIDTH, VOCABULARY, bias=False))

    def seconds(inputs: dict[int, torch.Tensor], few: bool) -> float:
        with products.fast(model), products.few_rows(model) if few else nullcontext():
            begin = time.perf_counter()
            for layer in model:
                layer(inputs[layer.in_features])
            return time.perf_counter() - begin

    found = []
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width) for width in (WIDTH, INNER)}
        with torch.inference_mode():
            turns = [[seconds(inputs, few) for few in (False, True)] for _ in range(asked.rounds + 1)][1:]
        plain, turned = (1000 * statistics.median(times) for times in zip(*turns, strict=True))
        found.append({"rows": rows, "plain_ms": plain, "few_rows_ms": turned, "ratio": plain / turned})
        print(f"| {rows} | {plain:.0f} | {turned:.0f} | {plain / turned:.1f} |", flush=True)
    driver.write("products", asked, found)


if __name__ == "__main__":
    main()
