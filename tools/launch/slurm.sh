#!/usr/bin/env bash
# Trains on the GPUs of several hosts under SLURM, one process a host.
#
#   sbatch --nodes=4 --gpus-per-node=8 tools/launch/slurm.sh configs/vit_b16.py --workdir /shared/runs/vit_b16 [--field value ...]
#
# --workdir has to be a folder that all hosts see. Three minutes before its time is up the job gets SIGTERM: the run saves a
# checkpoint and stops on all hosts, and the job goes back into the queue, where it goes on from there. The processes find each
# other by SLURM's variables.
#
#SBATCH --job-name=jclip
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
if [ $# -lt 3 ] || [ -z "${SLURM_JOB_ID:-}" ]; then sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; fi

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"

export JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1))) # all GPUs of a host for its one process
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-32}

srun --kill-on-bad-exit=1 jclip train "$@" &
run=$!
out_of_time=
trap 'out_of_time=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM # srun itself would kill its tasks
status=0
wait $run || status=$?
if [ -n "$out_of_time" ]; then # the first wait has been interrupted
    status=0
    wait $run || status=$?
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
