#!/usr/bin/env bash
# What only a GPU can tell, in under eight minutes: tests/gpu; the Fisher (mc against a training pass, by sequence in bfloat16) and the
# EWC step of a randomly initialised 135 M and a 1 B Llama; scoring and generation against lm-eval's HFLM; packed training; peak memory
# against `cltk estimate`. Nothing is fetched. Each part has a limit and writes its JSON as it ends; one that fails is said, the others
# run, and the exit code is 1.
#
#   benchmarks/gpu.sh [FOLDER]          JSON as FOLDER/gpu-*.json (benchmarks/results)
#   benchmarks/gpu.sh --cpu [FOLDER]    the same parts with tiny shapes on a processor, under a minute: shows that they run
#   benchmarks/gpu.sh --list            what is run, without running it
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
kind=gpu
case ${1:-} in --cpu) kind=cpu; shift ;; --list) kind=list; shift ;; esac
out=${1:-benchmarks/results}
if [ $kind = gpu ]; then
  $python -c "import torch; assert torch.cuda.is_available(), 'no CUDA GPU here; --cpu shows that the parts run'" || exit 2
fi
[ $kind = list ] || mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TQDM_DISABLE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=()

part() {  # part NAME SECONDS COMMAND...
  local name=$1 limit=$2; shift 2
  if [ $kind = list ]; then echo "$name ($limit s): $*"; return; fi
  echo "== $name"
  timeout "$limit" "$@" || { echo "$name: failed, or took more than $limit s (code $?)" >&2; failed+=("$name"); }
}

bench() {  # bench FILE NAME SECONDS ARGUMENTS...: a benchmark that writes NAME's JSON
  local file=$1 name=$2 limit=$3; shift 3
  part "$name" "$limit" $python "benchmarks/$file.py" --out "$out/$kind-$name.json" "$@"
}

if [ $kind = cpu ]; then
  tiny=(--model small --rounds 1)
  part tests 300 $python -m pytest -q -p no:cacheprovider tests/gpu/test_precision.py
  bench importance importance 300 "${tiny[@]}" --rows 2 --lengths 8 --studies mc
  bench ewc_step ewc_step 300 "${tiny[@]}" --forms cltk
  bench scoring scoring 300 "${tiny[@]}" --only "4 choices" --documents 2 --stock-batch 4
  bench scoring generation 300 "${tiny[@]}" --only 32 --documents 2 --stock-batch 4 --generate
  bench training training 300 "${tiny[@]}" --rows 8 --data prompts --sides "cltk, float32"
  bench estimate estimate 300 "${tiny[@]}" --sides plain --held-only
else  # limits add up to less than eight minutes; starting a side takes some seconds each
  wide=(--dtype bfloat16 --rounds 2)
  part tests 40 $python -m pytest -q -p no:cacheprovider tests/gpu/test_precision.py
  for model in random-135m random-1b; do
    bench importance importance-$model 60 --model $model "${wide[@]}" --rows 32 --lengths 128 --studies mc bfloat16
    bench ewc_step ewc_step-$model 60 --model $model "${wide[@]}" --forms cltk
  done
  bench scoring scoring 50 --model random-135m "${wide[@]}" --only "4 choices" --documents 256 --stock-batch auto
  bench scoring generation 45 --model random-135m "${wide[@]}" --only 32 --documents 128 --stock-batch auto --generate
  bench training training 45 --model random-135m --rounds 2 --data prompts --sides "cltk, float32" cltk
  bench estimate estimate 55 --model random-135m --rounds 1 --held-only
fi
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}" >&2; exit 1; fi
