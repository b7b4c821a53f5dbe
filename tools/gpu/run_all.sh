#!/usr/bin/env bash
# Half an hour with a GPU, used well: is jclip right there, how fast is it, and where does the time go?
#
#     bash tools/gpu/run_all.sh OUT               every part under its own time limit; results as JSON lines in OUT
#     bash tools/gpu/run_all.sh OUT rehearsal     checks and steps on a CPU, in small: do they run?
#
# Needs Python with jax (CUDA), flax and optax; beside open_clip, torch and open_clip as well. Nothing is installed.
set -u
out=${1:?usage: run_all.sh OUT [rehearsal]}
rehearsal=${2:-}
cd "$(dirname "$0")/../.."
mkdir -p "$out"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" 2>"$out/$name.log" | tee "$out/$name.jsonl"
  local code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    echo "== $name ended with status $code; the end of $out/$name.log:"
    tail -n 5 "$out/$name.log"
    status=1
  fi
}

if [ "$rehearsal" = rehearsal ]; then
  export JAX_PLATFORMS=cpu
  rows=(ViT-tiny-test:16:none:unroll ViT-tiny-test:16:nothing_saveable:scan)
else
  export XLA_PYTHON_CLIENT_MEM_FRACTION=0.93
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  rows=()
fi
part check 300 python3 tools/gpu/check.py
part steps 480 python3 tools/gpu/bench_steps.py "${rows[@]}"
if [ "$rehearsal" != rehearsal ]; then
  XLA_FLAGS=--xla_gpu_enable_command_buffer= part profile 240 \
    python3 tools/gpu/bench_steps.py ViT-B-32:1024:none:unroll ViT-L-14:256:none:unroll --profile "$out/profile"
  if python3 -c 'import open_clip' 2>/dev/null; then
    part open_clip 420 python3 tools/gpu/bench_open_clip.py
    part open_clip_eager 240 python3 tools/gpu/bench_open_clip.py --eager ViT-B-32:1024 ViT-L-14:128
  else
    echo "== open_clip is not installed: no peer"
  fi
fi
exit $status
