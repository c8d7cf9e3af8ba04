#!/usr/bin/env bash
# Everything that a card can tell, on the machine that has it: in the project's folder, with .whl/ of kit.sh beside it.
#
#     tests/gpu/run.sh 1      # install, doctor, the tests of a card, the quickstart
#     tests/gpu/run.sh 2      # ceilings of the card, decoding, scoring and update micro-steps
#     tests/gpu/run.sh 3      # whole steps of PPO and GRPO, TRL's beside them
#     tests/gpu/run.sh        # all of it, one after the other
#
# Each call takes less than ten minutes. What was found is in $OUT (default: build/gpu) as it is found:
#
#     tests.log, figures.jsonl     tests, and what they measured
#     benchmarks.jsonl, table.md   benchmarks, one line a case, and their table
#
# DEVICE=cpu tries all of it on small models where there is no card. SITE is where the wheels are installed. LIMIT is the
# most seconds that the benchmarks of a call take.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda:0}
site=${SITE:-/tmp/rlhf-peft-site}
out=${OUT:-build/gpu}
mkdir -p "$out"
shape=full
[ "$device" = cpu ] && shape=toy

if compgen -G '.whl/*.whl' >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl ||
    exit 1
fi
# The code of this folder comes first; of the package's wheel its entry points are used.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True PYTORCH_ALLOC_CONF=expandable_segments:True # as a run sets it
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
status=0

tests() {
  timeout 60 "$python" -m rlhf_peft doctor | tee "$out/doctor.txt"
  # Warnings of other libraries on a card are not known yet, and fail no test here.
  timeout 330 "$python" -m pytest tests/gpu -m gpu --gpu-device "$device" --gpu-figures "$out/figures.jsonl" \
    -o addopts= -o filterwarnings=default -p no:xdist -p no:cacheprovider -ra --tb=short --durations=15 \
    2>&1 | tee "$out/tests.log" || status=1
  begun=$SECONDS
  timeout 150 "$python" -m rlhf_peft run quickstart "device=${device%%:*}" output_dir="$(mktemp -d)" \
    2>&1 | tee "$out/quickstart.log" || status=1
  echo "quickstart: $((SECONDS - begun)) s" | tee -a "$out/quickstart.log"
}

benchmarks() { # part
  timeout 580 "$python" -m tests.benchmarks --gpu --device "${device%%:*}" --shape "$shape" --part "$1" --seconds "${LIMIT:-520}" \
    --out "$out/benchmarks.jsonl" || status=1
  "$python" -m tests.benchmarks --gpu --render --out "$out/benchmarks.jsonl" >"$out/table.md" || status=1
}

case ${1:-all} in
  1) tests ;;
  2) benchmarks 2 ;;
  3) benchmarks 3 ;;
  all) tests; benchmarks 2; benchmarks 3 ;;
  *) echo "usage: tests/gpu/run.sh [1|2|3]" >&2; exit 2 ;;
esac
exit $status
