#!/usr/bin/env bash
# Trains on several hosts, or tries it with several processes on this one.
# The workdir must be one that all workers share. Flags after -- are those of
# ddpm.main.
#
# On each host, with its own index (the first is the chief):
#   launch/multi_worker.sh --hosts host0:12345,host1:12345 --index 0 -- \
#     --config=configs/cifar10.py --workdir=/shared/cifar10
#
# Two processes on this machine:
#   launch/multi_worker.sh --local 2 -- \
#     --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Exit code 75 of all workers says that the run would go on: they are started
# again, unless it was this script that was told to stop (SIGTERM, Ctrl-C).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

usage() {
  echo "multi_worker.sh: $1" >&2
  sed -n '2,/^set /p' "$0" | grep '^#' >&2
  exit 1
}

local='' hosts='' index=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --local) local=${2:-}; shift 2 || usage '--local needs a number' ;;
    --hosts) hosts=${2:-}; shift 2 || usage '--hosts needs a list' ;;
    --index) index=${2:-}; shift 2 || usage '--index needs a number' ;;
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
done

flags=("$@")

worker() { # hosts index command...
  local list="\"${1//,/\",\"}\"" i=$2
  shift 2
  TF_CONFIG="{\"cluster\": {\"worker\": [$list]},
    \"task\": {\"type\": \"worker\", \"index\": $i}}" \
    exec "$@" "${flags[@]}" --config.distribute.strategy=multi_worker
}

if [[ -z $local ]]; then
  [[ -n $hosts && -n $index ]] || usage '--local N, or --hosts and --index'
  worker "$hosts" "$index" launch/local.sh
fi

[[ $local =~ ^[1-9][0-9]*$ ]] || usage "--local is $local, expected a number"
free_ports() {
  "$python" - "$local" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(int(sys.argv[1]))]
print(','.join(f'127.0.0.1:{s.getsockname()[1]}' for s in sockets))
PYTHON
}

stopped='' pids=()
trap 'stopped=1; kill "${pids[@]}" 2>/dev/null' TERM
trap 'stopped=1' INT # A terminal's Ctrl-C reaches the workers by itself.
while true; do
  hosts=$(free_ports) pids=() status=0
  for ((i = 0; i < local; i++)); do
    worker "$hosts" "$i" "$python" -m ddpm.main &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    # A signal ends `wait`, but not the worker.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    # What went wrong with one says more than that the others would go on.
    [[ $code == 0 || ($code == 75 && $status != 0) ]] || status=$code
  done
  [[ $status == 75 && -z $stopped ]] || exit "$status"
  echo 'multi_worker.sh: starting again' >&2
  sleep 1
  [[ -z $stopped ]] || exit 75
done
