#!/usr/bin/env bash
# The Fisher and the EWC step on a GPU, in under eight minutes: a randomly initialised 135 M and a 1 B Llama, bfloat16.
# Keeps the JSON as benchmarks/results/gpu-*.json (or in $1).
set -euo pipefail
cd "$(dirname "$0")"
python -c "import torch; assert torch.cuda.is_available(), 'no CUDA GPU here'"
out=${1:-results}
mkdir -p "$out"
for model in random-135m random-1b; do
  for bench in importance ewc_step; do
    python "$bench.py" --model "$model" --dtype bfloat16 --rounds 2 --out "$out/gpu-$bench-$model.json"
  done
done
