#!/usr/bin/env bash
# Trains on this machine: all its GPUs, or its CPU. Flags are those of ddpm.main.
#
#   launch/local.sh --config=configs/mnist5k.py --workdir=runs/mnist5k
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m ddpm.main "$@"
