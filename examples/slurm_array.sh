#!/bin/bash
# An evaluation over a Slurm array: each task does its part of the batches, in a folder of its own, and the last step puts them together.
# A task that is preempted, or comes to the end of its time, asks to be queued again and goes on where it stopped.
#
#   jobid=$(sbatch --parsable examples/slurm_array.sh)
#   sbatch --dependency=afterok:$jobid --wrap 'rdc merge runs/cifar10/part-* --out runs/cifar10/whole'
#
#SBATCH --job-name=rdc-evaluate
#SBATCH --array=1-16
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm-%A-%a.log

set -u
part=${SLURM_ARRAY_TASK_ID:-1} parts=${SLURM_ARRAY_TASK_MAX:-1}
command=(rdc evaluate
  --model "${RDC_MODEL:-cifar10}" --data "${RDC_DATA:-cifar10}" --n "${RDC_N:-10000}"
  --threats "${RDC_THREATS:-linf:8/255,l2:0.5,flow:0.05}" --attacks autoattack,adaptive --steps 100
  --shard "$part/$parts" --out "${RDC_OUT:-runs/cifar10}/part-$part")

# Two minutes before the end of its time Slurm sends USR1 to this script: stop (a finished batch is kept), and queue again.
stopped=0
again() {
  stopped=1
  kill -TERM "$child" 2>/dev/null
}
trap again USR1 TERM

echo "$(date -Is) ${command[*]}"
"${command[@]}" &
child=$!
wait "$child"
status=$?
if [ "$stopped" = 1 ]; then # the first wait ended with the signal, not with the child
  wait "$child"
  status=$?
fi
if [ "$stopped" = 1 ] && [ "$status" != 0 ]; then
  echo "$(date -Is) stopped with status $status, queued again"
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${part}"
  exit 0
fi
exit "$status"
