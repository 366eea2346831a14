#!/usr/bin/env bash
# Trains on this machine: all its GPUs, or its CPU. Flags are those of ddpm.main.
#
#   launch/local.sh --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Exit code 75 says that the run would go on: it is started again, unless it was
# this script that was told to stop (SIGTERM, Ctrl-C).
set -uo pipefail
cd "$(dirname "$0")/.."

stopped=''
trap 'stopped=1; kill "$pid" 2>/dev/null' TERM
trap 'stopped=1' INT # A terminal's Ctrl-C reaches the trainer by itself.
while true; do
  "${PYTHON:-python}" -m ddpm.main "$@" &
  pid=$!
  # A signal ends `wait`, but not the trainer.
  while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
  wait "$pid"
  status=$?
  [[ $status == 75 && -z $stopped ]] || exit "$status"
  echo 'local.sh: starting again' >&2
  sleep 1
  [[ -z $stopped ]] || exit 75
done
