#!/usr/bin/env bash
# What a careful user writes without cltk: lm_eval of the start model, one training a method, lm_eval of each result.
#
#     bash experiment.sh FOLDER METHOD...
#
# FOLDER holds settings.json (train.py says what is in it) and the rows; tasks are lm-eval's YAML. Nothing here imports cltk.
# Times: a line "PART METHOD SECONDS" in FOLDER/clock behind every part, the clock's reading at its end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
shift
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

setting() { "$python" -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$folder/settings.json" "$1"; }
clock() { echo "$1 $2 $EPOCHREALTIME" >>"$folder/clock"; }

measure() { # NAME MODEL
    "$python" -m lm_eval --model hf --model_args "pretrained=$2,dtype=$dtype" --tasks "$tasks" --include_path "$include" \
        "${part[@]}" --batch_size "$batch" --device cpu --output_path "$folder/$1/lm_eval" --log_samples
    clock tasks "$1"
    "$python" "$here/nll.py" "$folder" "$2" "$folder/$1/nll.json"
    clock texts "$1"
}

model=$(setting model) tasks=$(setting tasks) include=$(setting include) limit=$(setting limit) batch=$(setting batch)
dtype=$(setting dtype)
part=(--limit "$limit")
[ ! -e "$folder/samples.json" ] || part=(--samples "$(cat "$folder/samples.json")")
clock begin -
measure base "$model"
for method in "$@"; do
    "$python" "$here/train.py" "$folder" "$method" "$folder/$method/model"
    clock training "$method"
    measure "$method" "$folder/$method/model"
    rm -r "$folder/$method/model" # 540 MB each
done
