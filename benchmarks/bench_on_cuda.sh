#!/usr/bin/env bash
# Everything that `thor-policy bench` measures, at full size with random weights, on one CUDA
# GPU: latency by stage, precision, modules, and the roofline that the latency is held against.
#
#     benchmarks/bench_on_cuda.sh OUT_DIR [DEVICE of the roofline: h200, thor, ...]
#
# Wants torch, numpy, safetensors, sentencepiece, pillow, pyyaml, rich and matplotlib; 8 GB of
# disk in TMPDIR and 45 GB of GPU memory. About three minutes on an H200. BACKENDS, FRAMES and
# CONFIG change what is measured. Every part runs; exit status 1 if one failed.
set -uo pipefail
out=${1:?usage: benchmarks/bench_on_cuda.sh OUT_DIR [DEVICE]}
device=${2:-h200}
backends=${BACKENDS:-pytorch,pytorch_pipelined,fp8_mlp_freq1,fp8_mlp,fp8_mlp_dynamic}
subject=(--random-weights --config "${CONFIG:-pi05_libero}" --cameras 2 --num-steps 10)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)

status=0
part() {
  echo "== thor-policy $*"
  PYTHONPATH=. COLUMNS=110 python3 -m thor_policy_ros.evaluation "$@" ||
    { status=1; echo "FAILED: thor-policy $*"; }
  echo "-- $SECONDS s"
}

part bench latency "${subject[@]}" --backend "$backends" --frames "${FRAMES:-40}" \
  --json "$out/latency.json" --plot "$out/latency.png"
part bench modules --config "${CONFIG:-pi05_libero}" --json "$out/modules.json"
part bench precision "${subject[@]}" --backend "pytorch,fp8_mlp_freq1,fp8_mlp_dynamic" \
  --frames 4 --json "$out/precision.json"
for dtype in bf16 fp8; do
  part roofline --device "$device" --dtype "$dtype" --bench "$out/latency.json" \
    --json "$out/roofline_$dtype.json"
done
exit "$status"
