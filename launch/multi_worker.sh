#!/usr/bin/env bash
# Trains on several hosts, or with several processes on this one as a test.
# All workers must share the workdir. Flags after -- are ddpm.main's.
#
# On each host, with its own index (0 is the chief):
#   launch/multi_worker.sh --hosts host0:12345,host1:12345 --index 0 -- \
#     --config=configs/cifar10.py --workdir=/shared/cifar10
#
# Two processes on this machine:
#   launch/multi_worker.sh --local 2 -- \
#     --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Needs: ddpm, installed in .venv or for PYTHON, on every host. Run for real on
# CPUs, with --local. Exit code 75 from all workers means the run can resume:
# they are restarted (launch/restart.sh).
set -uo pipefail
source "$(dirname "$0")/restart.sh"

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
  [[ -n $hosts && -n $index ]] || usage 'pass --local N, or --hosts and --index'
  worker "$hosts" "$index" "$repository/launch/local.sh"
fi

[[ $local =~ ^[1-9][0-9]*$ ]] || usage "--local is $local, expected a number"
free_ports() {
  "$python" - "$local" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(int(sys.argv[1]))]
print(','.join(f'127.0.0.1:{s.getsockname()[1]}' for s in sockets))
PYTHON
}

# The workers share this machine's cores: threads of all for each of them would
# wait for one another.
threads=$(($(nproc) / local))
export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$((threads > 0 ? threads : 1))}

start() {
  local i
  hosts=$(free_ports) pids=()
  for ((i = 0; i < local; i++)); do
    worker "$hosts" "$i" "$python" -m ddpm.main &
    pids+=($!)
  done
}
run_with_restarts start
