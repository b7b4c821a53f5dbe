#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, one process a host.
#
#   tools/launch/tpu_slice.sh NAME ZONE configs/vit_l14_v5e256.py --workdir /mnt/runs/vit_l14 [--field value ...]
#   STOP=1 tools/launch/tpu_slice.sh NAME ZONE
#
# NAME and ZONE are those of the slice (gcloud compute tpus tpu-vm create). Every host needs this repository in ~/jclip with the
# extra "tpu" installed, and --workdir and the data at the same paths, on storage that all share: NFS, or a mounted bucket that
# can rename folders (gcsfuse: --rename-dir-limit). JCLIP is the program, for example '~/jclip/.venv/bin/jclip' (default: jclip).
# The run goes on when this terminal closes; what it says is shown here and stays in ~/jclip/jclip.log of the first host. With
# STOP=1 it saves a checkpoint and ends; the first command goes on from there.
set -euo pipefail
usage() { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
if [ $# -lt 2 ]; then usage; fi
name=$1 zone=$2
shift 2

everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

if [ -n "${STOP:-}" ]; then
    everywhere "pkill -TERM -f 'bin/[j]clip train'"
    exit
fi
if [ $# -lt 3 ]; then usage; fi

# JAX finds the other hosts of a slice by itself. The compiler's flags of the caller, if any, go along.
everywhere "cd ~/jclip && {
    JCLIP_DISTRIBUTED=1 LIBTPU_INIT_ARGS=$(printf %q "${LIBTPU_INIT_ARGS:-}") \
        nohup ${JCLIP:-jclip} train $(printf '%q ' "$@") >> jclip.log 2>&1 < /dev/null &
    tail -n 0 -F jclip.log --pid=\$!
    wait \$!
}"
