#!/usr/bin/env bash
# Trains on this machine, on all GPUs or else the CPU. Flags are ddpm.main's.
#
#   launch/local.sh --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Exit code 75 means the run can resume: it is restarted, unless this script
# itself was stopped (SIGTERM, Ctrl-C).
set -uo pipefail
cd "$(dirname "$0")/.."

stopped=''
trap 'stopped=1; kill "$pid" 2>/dev/null' TERM
trap 'stopped=1' INT # A terminal's Ctrl-C also reaches the trainer.
while true; do
  "${PYTHON:-python}" -m ddpm.main "$@" &
  pid=$!
  # A signal interrupts `wait`, but the trainer may still run.
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"
  status=$?
  [[ $status == 75 && -z $stopped ]] || exit "$status"
  echo 'local.sh: restarting' >&2
  sleep 1
  [[ -z $stopped ]] || exit 75
done
