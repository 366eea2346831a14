# Sourced by the scripts that start ddpm.main.
#
# run_with_restarts START: calls START, which starts processes in the background
# and puts their ids into `pids`, waits for them, and exits with their code. If
# that is 75, the run can resume: it calls START again, after a pause of 1, 2,
# 4, ... 60 s, unless this script was stopped itself (SIGTERM, SIGHUP, SIGUSR1,
# Ctrl-C). After 5 restarts without a new step it gives up.
#
# `python` is PYTHON, or that of .venv beside launch/.

name=${0##*/}
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
python=${PYTHON:-$repository/.venv/bin/python}
if ! type "$python" >/dev/null 2>&1; then
  echo "$name: there is no $python: set up .venv as in README.md, or set PYTHON" >&2
  exit 1
fi

stopped='' pids=()
trap 'stopped=1; kill "${pids[@]}" 2>/dev/null' TERM HUP USR1
trap 'stopped=1' INT # A terminal's Ctrl-C also reaches the processes.

wait_for_all() { # Sets `status`.
  status=0
  local pid code
  for pid in "${pids[@]}"; do
    # A signal interrupts `wait`, but the process may still run.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    # An error of one takes precedence over the others' 75.
    [[ $code == 0 || ($code == 75 && $status != 0) ]] || status=$code
  done
}

run_with_restarts() { # function that starts the processes
  local step best=0 in_vain=0 pause=1 began
  # The trainer writes its step there.
  DDPM_STEP_FILE=$(mktemp) || exit 1
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
    [[ $status == 75 && -z $stopped ]] || exit "$status"
    if ((${step:-0} > best)); then
      best=$step in_vain=0
    elif ((++in_vain > 5)); then
      echo "$name: giving up: 5 restarts without a new step" >&2
      exit 1
    fi
    # The pauses grow only while the starts are short.
    ((SECONDS - began < 600)) || pause=1
    echo "$name: restarting in $pause s" >&2
    sleep "$pause" &
    pids=($!)
    wait "$!"
    [[ -z $stopped ]] || exit 75
    pause=$((pause < 30 ? 2 * pause : 60))
  done
}
