#!/bin/sh
# Downloads the wheels that benchmarks.gpu needs on a machine without internet that has Python 3.12 with jax, flax,
# optax, orbax-checkpoint, numpy, torch and timm: ml_collections, and with "corel5k" also what `--root` needs.
#
#     benchmarks/gpu_wheels.sh DIR [corel5k]
set -eu
folder=${1:?"give a folder: benchmarks/gpu_wheels.sh DIR [corel5k]"}
packages="ml_collections"
[ "${2:-}" != corel5k ] || packages="$packages clu cloudpickle array_record portpicker contourpy cycler defusedxml fonttools grain kiwisolver matplotlib pyparsing python-dateutil six tensorboardX"
# Without --no-deps, pip would also download jax and torch.
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest "$folder" $packages
du -sh "$folder"
cat <<TEXT
On the other machine:
    python3 -m pip install --no-index --no-deps --target site "$folder"/*.whl
    PYTHONPATH=site:. python3 -m benchmarks.gpu --minutes 8 --output results
TEXT
