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
set -euo pipefail
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

worker() { # hosts index flags...
  local list="\"${1//,/\",\"}\"" i=$2
  shift 2
  TF_CONFIG="{\"cluster\": {\"worker\": [$list]},
    \"task\": {\"type\": \"worker\", \"index\": $i}}" \
    exec "$python" -m ddpm.main "$@" --config.distribute.strategy=multi_worker
}

if [[ -z $local ]]; then
  [[ -n $hosts && -n $index ]] || usage '--local N, or --hosts and --index'
  worker "$hosts" "$index" "$@"
fi

[[ $local =~ ^[1-9][0-9]*$ ]] || usage "--local is $local, expected a number"
hosts=$("$python" - "$local" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(int(sys.argv[1]))]
print(','.join(f'127.0.0.1:{s.getsockname()[1]}' for s in sockets))
PYTHON
)
pids=()
for ((i = 0; i < local; i++)); do
  worker "$hosts" "$i" "$@" &
  pids+=($!)
done
trap 'kill "${pids[@]}" 2>/dev/null' INT TERM
status=0
for pid in "${pids[@]}"; do
  wait "$pid" || status=$?
done
exit "$status"
