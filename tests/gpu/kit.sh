#!/usr/bin/env bash
# Gathers what a machine with a GPU and without a network lacks: the wheels of this package and of the packages that
# it needs. That machine has Python 3.12, torch 2.11 for CUDA 13.0, transformers 5.17, accelerate 1.15 and what these
# need, as in constraints-image.txt.
#
#     tests/gpu/kit.sh      # writes .whl/, 13 MB, beside the code; git ignores it
#     tests/gpu/run.sh 1    # there, with .whl/ beside the code
#
# The package index is reached through pip. A package that is not found stops the script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}

# In the versions that are tested; --no-deps below, since the other packages that they need are there.
names=(bitsandbytes trl peft datasets dill multiprocess pydantic pydantic-core annotated-types typing-inspection starlette uvicorn)
packages=()
for name in "${names[@]}"; do packages+=("$(grep -E "^$name==" constraints.txt)"); done

# pip compares the names of platforms letter by letter, so that each version of the C library is named.
platforms=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
for minor in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done

rm -rf .whl
mkdir .whl
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 \
  --abi abi3 --abi none "${platforms[@]}" --dest .whl "${packages[@]}"
"$python" -m pip wheel --quiet --no-deps --wheel-dir .whl .
"$python" tests/gpu/trim.py .whl/bitsandbytes-*.whl
ls -l .whl
du -sh .whl
