#!/usr/bin/env bash
# Trains on this machine, on all GPUs or else the CPU. Flags are ddpm.main's.
#
#   launch/local.sh --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Needs: ddpm, installed in .venv or for PYTHON. Run for real on CPUs.
# It is restarted after exit code 75, which means that the run can resume:
# launch/restart.sh.
set -uo pipefail
# shellcheck source=launch/restart.sh
source "$(dirname "$0")/restart.sh"

flags=("$@")
start() {
  "$python" -m ddpm.main "${flags[@]}" &
  pids=($!)
}
run_with_restarts start
