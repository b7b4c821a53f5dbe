#!/usr/bin/env bash
# Trains on all GPUs of this host, in one process.
#
#   tools/launch/gpu_host.sh configs/vit_b16.py --workdir runs/vit_b16 [--field value ...]
#
# Training that ends with an error (a GPU fell off the bus, the host was restarted under it) is started again, ATTEMPTS times at
# most; it goes on from the last checkpoint. XLA_FLAGS given by the caller come last, so that they count.
set -euo pipefail
if [ $# -lt 3 ]; then sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; fi

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"

trap 'kill -TERM $run' TERM # the run saves a checkpoint and ends
for attempt in $(seq "${ATTEMPTS:-3}"); do
    jclip train "$@" &
    run=$!
    status=0
    wait $run || status=$?
    if kill -0 $run 2> /dev/null; then # the wait has been interrupted
        status=0
        wait $run || status=$?
    fi
    if [ $status = 0 ]; then exit 0; fi
    echo "attempt $attempt of ${ATTEMPTS:-3} has ended with an error" >&2
done
exit 1
