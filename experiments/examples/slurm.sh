#!/bin/bash
# One experiment by as many jobs as there is room for:   sbatch --array=1-4 slurm.sh study.yaml [cltk run's options]
#
# Every task takes cells that nobody has, so there may be more or fewer tasks than cells, and any of them may be killed. Some time
# before the end of its time (or when it is preempted) a task writes a checkpoint, ends with exit code 75 and asks for its place
# again; the same command goes on from there. Fixed shares instead: add --cells slurm.
#SBATCH --job-name=cltk
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
#SBATCH --signal=B:USR1@120

cltk run "$@" & # in the background: a shell that waits for a program in front passes no signal on
run=$!
trap 'kill -USR1 "$run" 2>/dev/null' USR1 TERM
code=0
while :; do # a signal ends `wait` before the run has ended
    wait "$run"
    code=$?
    kill -0 "$run" 2>/dev/null || break
done
wait "$run" 2>/dev/null
last=$?
[ "$last" -ne 127 ] && code=$last # 127: its exit code was told already
if [ "$code" -eq 75 ]; then
    task=$SLURM_JOB_ID
    [ -n "$SLURM_ARRAY_TASK_ID" ] && task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    scontrol requeue "$task"
fi
exit "$code"
