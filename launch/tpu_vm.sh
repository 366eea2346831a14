#!/usr/bin/env bash
# Trains on a Cloud TPU VM. The workdir must be in a bucket. Not run on a TPU.
#
#   launch/tpu_vm.sh start --name my-tpu --zone us-central2-b --type v4-8 -- \
#     --config=configs/cifar10.py --workdir=gs://my-bucket/cifar10
#   launch/tpu_vm.sh logs|stop|resume|delete --name my-tpu --zone us-central2-b
#
# start is these three:
#   create: queues a request for the VM, with --spot for one that may be taken
#     away, and waits until it is granted. --version is the VM's software; by
#     default what Google names for the type.
#   install: copies this checkout (what git does not ignore) and installs it for
#     Python 3.12.
#   run: trains under systemd: the run goes on when ssh ends. Flags after -- are
#     ddpm.main's. launch/local.sh restarts it.
# logs: shows the log as it grows. stop: saves and stops. resume: goes on, also
#   after a restart of the VM. delete: the VM and its request.
# After a spot VM was taken away: delete, and start again.
#
# Needs: gcloud, with a project. --dry_run prints the commands. Slices of several
# hosts are not supported.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "tpu_vm.sh: $1" >&2
  sed -n '2,/^set /p' "$0" | grep '^#' >&2
  exit 1
}

command=${1:-}
commands='create, install, run, start, logs, stop, resume or delete'
case $command in
  create | install | run | start | logs | stop | resume | delete) shift ;;
  *) usage "expected $commands, got '$command'" ;;
esac
name='' zone='' type='' version='' spot='' dry_run=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) name=${2:-}; shift 2 || usage '--name needs a value' ;;
    --zone) zone=${2:-}; shift 2 || usage '--zone needs a value' ;;
    --type) type=${2:-}; shift 2 || usage '--type needs a value' ;;
    --version) version=${2:-}; shift 2 || usage '--version needs a value' ;;
    --spot) spot=--spot; shift ;;
    --dry_run) dry_run=1; shift ;;
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
done
[[ -n $name && -n $zone ]] || usage '--name or --zone is missing'
if [[ $command == create || $command == start ]]; then
  [[ -n $type ]] || usage '--type is missing'
  ((${type##*-} <= 8)) || usage "--type $type has several hosts"
fi
if [[ $command == run || $command == start ]]; then
  [[ " $*" == *' --workdir=gs://'* ]] ||
    usage 'after --, --workdir=gs://... is missing'
fi

tpus() {
  if [[ -n $dry_run ]]; then
    printf '%q ' gcloud compute tpus "$@" --zone "$zone"
    echo
  else
    gcloud compute tpus "$@" --zone "$zone"
  fi
}

on_vm() { # command
  tpus tpu-vm ssh "$name" --command "$1"
}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

create() {
  if [[ -z $version ]]; then
    # https://docs.cloud.google.com/tpu/docs/runtimes
    case $type in
      v6e-*) version=v2-alpha-tpuv6e ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      *) version=tpu-ubuntu2204-base ;;
    esac
  fi
  tpus queued-resources create "$name" --node-id "$name" \
    --accelerator-type "$type" --runtime-version "$version" ${spot:+"$spot"}
  local state=''
  while [[ $state != ACTIVE ]]; do
    [[ -z $state ]] || sleep 30
    state=$(tpus queued-resources describe "$name" --format 'value(state.state)')
    echo "$state"
    [[ -z $dry_run ]] || break
    case $state in
      FAILED | SUSPEND*) echo 'tpu_vm.sh: there is no VM' >&2; exit 1 ;;
    esac
  done
}

install() {
  # The checkout as it is, committed or not.
  (
    export GIT_INDEX_FILE=$copy/index
    git add --all
    git archive --prefix=ddpm/ --output="$copy/ddpm.tar.gz" "$(git write-tree)"
  )
  tpus tpu-vm scp "$copy/ddpm.tar.gz" "$name:"
  # The VM's own Python is older than ddpm needs.
  on_vm "tar -xzf ddpm.tar.gz && cd ddpm && python3 -m pip install --user -q uv \
&& ~/.local/bin/uv venv --allow-existing --python 3.12 .venv \
&& DDPM_TENSORFLOW=tensorflow-tpu ~/.local/bin/uv pip install -e . \
-f https://storage.googleapis.com/libtpu-tf-releases/index.html"
}

run() { # flags...
  cat >"$copy/ddpm-train.sh" <<END
export PYTHON=\$HOME/ddpm/.venv/bin/python
exec launch/local.sh$(printf ' %q' "$@") --config.distribute.strategy=tpu
END
  tpus tpu-vm scp "$copy/ddpm-train.sh" "$name:"
  resume
}

# systemd asks local.sh to stop, which waits for the trainer to save. --collect
# forgets how the last start ended. Two at once are refused, by their name.
resume() {
  on_vm "sudo systemd-run --unit=ddpm --collect --uid=\$(id -un)\
 --setenv=HOME=\$HOME --property=WorkingDirectory=\$HOME/ddpm\
 --property=KillMode=mixed --property=TimeoutStopSec=120\
 bash \$HOME/ddpm-train.sh"
}

case $command in
  create | install | resume) "$command" ;;
  run) run "$@" ;;
  start) create; install; run "$@" ;;
  logs) on_vm 'journalctl --unit=ddpm --lines=100 --follow --output=cat' ;;
  stop) on_vm 'sudo systemctl stop ddpm' ;;
  delete) tpus queued-resources delete "$name" --force --quiet ;;
esac
