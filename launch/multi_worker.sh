#!/usr/bin/env bash
# Trains on several hosts, or with several processes on this one as a test.
# Flags after -- are ddpm.main's. All workers must share the workdir.
#
# On hosts that can be reached by ssh without a password, from any machine that
# shares their folders; host1 is the chief:
#   launch/multi_worker.sh --hosts=host1,host2,host3 -- \
#     --config=configs/cifar10.py --workdir=/shared/cifar10
#
# Two processes on this machine:
#   launch/multi_worker.sh --local=2 -- \
#     --config=configs/mnist5k.py --workdir=runs/mnist5k
#
# Without ssh, on each host, with its own index (0 is the chief):
#   launch/multi_worker.sh --hosts=host1,host2 --index=0 -- --config=...
#
# Needs: this checkout and ddpm, installed in .venv or for PYTHON, under the same
# paths on every host. The workers talk to each other on port 12345, or another:
# --hosts=host1:23456,host2:23456. Run for real on CPUs, by ssh on one machine.
#
# What worker 0 says is also in WORKDIR/logs/worker_0.log, unless the workdir is
# a bucket. If one dies, all are stopped. Exit code 75 from all means the run can
# resume: they are restarted (launch/restart.sh).
set -uo pipefail
# shellcheck source=launch/restart.sh
source "$(dirname "$0")/restart.sh"

usage() {
  echo "multi_worker.sh: $1" >&2
  sed -n '2,/^set /p' "$0" | grep '^#' >&2
  exit 1
}

local='' hosts='' index='' leash=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --local=* | --hosts=* | --index=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --local) local=${2:-}; shift 2 || usage '--local needs a number' ;;
    --hosts) hosts=${2:-}; shift 2 || usage '--hosts needs a list' ;;
    --index) index=${2:-}; shift 2 || usage '--index needs a number' ;;
    --leash) leash=1; shift ;; # Of this script, by ssh: stdin's end is a stop.
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
done

flags=("$@")

worker() { # addresses index command...
  local list="\"${1//,/\",\"}\"" i=$2
  shift 2
  TF_CONFIG="{\"cluster\": {\"worker\": [$list]},
    \"task\": {\"type\": \"worker\", \"index\": $i}}" \
    exec "$@" "${flags[@]}" --config.distribute.strategy=multi_worker
}

log() { # index
  trap '' INT HUP # The workers have more to say.
  if [[ -n $logs ]]; then exec tee -a "$logs/worker_$1.log"; else exec cat; fi
}

IFS=, read -ra names <<<"$hosts"
addresses=''
for host in "${names[@]}"; do
  [[ $host == *:* ]] || host+=:12345
  addresses+=${addresses:+,}${host#*@}
done

if [[ -n $leash ]]; then
  worker "$addresses" "$index" "$python" -m ddpm.main &
  pids=($!)
  { read -r; stop; } <&0 >/dev/null 2>&1 &
  wait_for_all
  kill "$!" 2>/dev/null
  exit "$status"
fi
if [[ -n $index ]]; then
  [[ -n $addresses ]] || usage '--hosts is missing'
  worker "$addresses" "$index" "$repository/launch/local.sh"
fi

quote() { # for any shell
  local q=\'
  printf " '%s'" "${@//$q/$q\\$q$q}"
}

# ssh hands on the end of its input, but no signals: the workers run as long as
# file 9 is open here.
start_on_hosts() {
  local i fifo environment
  fifo=$(mktemp -u) && mkfifo "$fifo" || exit 1
  exec 7<>"$fifo"
  exec 8<"$fifo"
  exec 9>"$fifo" 7>&-
  rm "$fifo"
  environment=$(quote "PYTHON=$python" "DDPM_STEP_FILE=$DDPM_STEP_FILE")
  pids=()
  for i in "${!names[@]}"; do
    ssh -o BatchMode=yes "${names[i]%:*}" \
      "cd$(quote "$PWD") && exec env$environment$(
        quote "$repository/launch/multi_worker.sh" \
          --hosts "$addresses" --index "$i" --leash -- "${flags[@]}"
      )" <&8 8<&- 9>&- 2> >(log "$i" >&2) &
    pids+=($!)
  done
  exec 8<&-
}

free_ports() {
  "$python" - "$local" <<'PYTHON'
import socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(int(sys.argv[1]))]
print(','.join(f'127.0.0.1:{s.getsockname()[1]}' for s in sockets))
PYTHON
}

start_here() {
  local i
  addresses=$(free_ports) pids=()
  for ((i = 0; i < local; i++)); do
    worker "$addresses" "$i" "$python" -m ddpm.main 2> >(log "$i" >&2) &
    pids+=($!)
  done
}

find_logs "$@"
if [[ -n $addresses ]]; then
  stop() { exec 9>&-; }
  trap 'stopped=INT; stop' INT
  run_with_restarts start_on_hosts
else
  [[ $local =~ ^[1-9][0-9]*$ ]] ||
    usage "pass --hosts, or --local with a number, not '$local'"
  # The workers share this machine's cores: threads of all for each of them
  # would wait for one another.
  threads=$(($(nproc) / local))
  export TF_NUM_INTRAOP_THREADS=${TF_NUM_INTRAOP_THREADS:-$((threads > 0 ? threads : 1))}
  run_with_restarts start_here
fi
