# shellcheck shell=bash
# Sourced by the scripts that start programs of ddpm.
#
# run_with_restarts START: calls START, which starts processes in the background
# and puts their ids into `pids`, waits for them, and returns their code, also as
# `status`. If that is 75, the run can resume: it calls START again, after a
# pause of 1, 2, 4, ... 60 s, unless this script was stopped itself: then
# `stopped` is the signal (TERM, HUP, USR1, or INT for Ctrl-C). After 5 restarts
# without a new step it gives up.
#
# `python` is PYTHON, or that of .venv beside launch/.

name=${0##*/}
repository=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
python=${PYTHON:-$repository/.venv/bin/python}
if ! type "$python" >/dev/null 2>&1; then
  echo "$name: there is no $python: set up .venv as in README.md, or set PYTHON" >&2
  exit 1
fi

stopped='' pids=() logs=''
unset DDPM_STEP_FILE
# For the programs USR1 is like TERM. Slurm's srun passes it on.
stop() { kill -USR1 "${pids[@]}" 2>/dev/null; }
for signal in TERM HUP USR1; do
  # shellcheck disable=SC2064 # the signal of now
  trap "stopped=$signal; stop" "$signal"
done
trap 'stopped=INT' INT # A terminal's Ctrl-C also reaches the processes.

# Sets `logs` to WORKDIR/logs and makes it, if --workdir is a folder. The
# processes on other hosts write their step there.
find_logs() { # flags...
  local workdir=''
  while (($#)); do
    case $1 in
      --workdir=*) workdir=${1#*=} ;;
      --workdir) workdir=${2:-} ;;
    esac
    shift
  done
  [[ -n $workdir && $workdir != *://* ]] || return 0
  logs=$workdir/logs
  mkdir -p "$logs" || exit 1
  export DDPM_STEP_FILE=$logs/step
}

wait_for_all() { # Sets `status`.
  status=0
  local left=("${pids[@]}") running pid code
  while ((${#left[@]})); do
    wait -n "${left[@]}" # Until one ends; or a signal.
    running=()
    for pid in "${left[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        running+=("$pid")
        continue
      fi
      wait "$pid"
      code=$?
      # USR1 ends a program that does not listen yet.
      [[ $code != 138 ]] || code=75
      # The first error takes precedence over the others' 75.
      [[ $code == 0 || ($status != 0 && $status != 75) ]] || status=$code
    done
    left=("${running[@]}")
    # The others need not miss a worker that is dead.
    [[ $status == 0 || $status == 75 || ${#left[@]} == 0 ]] || stop
  done
}

run_with_restarts() { # function that starts the processes
  local step best=0 in_vain=0 pause=1 began
  # The trainer writes its step there.
  [[ -n ${DDPM_STEP_FILE:-} ]] || DDPM_STEP_FILE=$(mktemp) || exit 1
  export DDPM_STEP_FILE
  trap 'rm -f "$DDPM_STEP_FILE"' EXIT
  while true; do
    : >"$DDPM_STEP_FILE"
    began=$SECONDS
    "$1"
    wait_for_all
    step=$(<"$DDPM_STEP_FILE")
    # TensorFlow aborts a worker whose peers went away while they met.
    [[ $status != 134 || -n $step ]] || status=75
    [[ $status == 75 && -z $stopped ]] || return "$status"
    if ((${step:-0} > best)); then
      best=$step in_vain=0
    elif ((++in_vain > 5)); then
      echo "$name: giving up: 5 restarts without a new step" >&2
      status=1
      return 1
    fi
    # The pauses grow only while the starts are short.
    ((SECONDS - began < 600)) || pause=1
    echo "$name: restarting in $pause s" >&2
    sleep "$pause" &
    pids=($!)
    wait "$!"
    kill "$!" 2>/dev/null
    [[ -z $stopped ]] || return 75
    pause=$((pause < 30 ? 2 * pause : 60))
  done
}
