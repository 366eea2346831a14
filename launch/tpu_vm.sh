#!/usr/bin/env bash
# Trains on a Cloud TPU VM. The workdir must be in a bucket. Not run on a TPU.
#
#   launch/tpu_vm.sh start --name my-tpu --zone us-central2-b --type v4-8 -- \
#     --config=configs/cifar10.py --workdir=gs://my-bucket/cifar10
#   launch/tpu_vm.sh logs|stop|resume --name my-tpu --zone us-central2-b
#
# start: creates the VM, copies this checkout (what git does not ignore),
#   installs it for Python 3.12, and trains under systemd: the run goes on when
#   ssh ends. Flags after -- are ddpm.main's. --version is the VM's software; by
#   default what Google names for the type.
# logs: shows the log as it grows. stop: saves and stops. resume: goes on, also
#   after a restart of the VM.
#
# --dry_run prints the commands. Slices of several hosts are not supported.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "tpu_vm.sh: $1" >&2
  sed -n '2,/^set /p' "$0" | grep '^#' >&2
  exit 1
}

command=${1:-}
case $command in
  start | logs | stop | resume) shift ;;
  *) usage "expected start, logs, stop or resume, got '$command'" ;;
esac
name='' zone='' type='' version='' dry_run=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) name=${2:-}; shift 2 || usage '--name needs a value' ;;
    --zone) zone=${2:-}; shift 2 || usage '--zone needs a value' ;;
    --type) type=${2:-}; shift 2 || usage '--type needs a value' ;;
    --version) version=${2:-}; shift 2 || usage '--version needs a value' ;;
    --dry_run) dry_run=1; shift ;;
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
done
[[ -n $name && -n $zone ]] || usage '--name or --zone is missing'

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_vm() { # command
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --command "$1"
}

# systemd asks local.sh to stop, which waits for the trainer to save. --collect
# forgets how the last start ended. Two at once are refused, by their name.
train="sudo systemd-run --unit=ddpm --collect --uid=\$(id -un) --setenv=HOME=\$HOME\
 --property=WorkingDirectory=\$HOME/ddpm --property=KillMode=mixed\
 --property=TimeoutStopSec=120 bash \$HOME/ddpm-train.sh"

case $command in
  logs) on_vm 'journalctl --unit=ddpm --lines=100 --follow --output=cat' ;;
  stop) on_vm 'sudo systemctl stop ddpm' ;;
  resume) on_vm "$train" ;;
esac
[[ $command == start ]] || exit 0

[[ -n $type ]] || usage '--type is missing'
((${type##*-} <= 8)) || usage "--type $type has several hosts"
[[ " $*" == *' --workdir=gs://'* ]] ||
  usage 'after --, --workdir=gs://... is missing'
if [[ -z $version ]]; then
  # https://docs.cloud.google.com/tpu/docs/runtimes
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# The checkout as it is, committed or not.
export GIT_INDEX_FILE=$copy/index
git add --all
git archive --prefix=ddpm/ --output="$copy/ddpm.tar.gz" "$(git write-tree)"
cat >"$copy/ddpm-train.sh" <<END
export PYTHON=\$HOME/ddpm/.venv/bin/python
exec launch/local.sh$(printf ' %q' "$@") --config.distribute.strategy=tpu
END

run gcloud compute tpus tpu-vm create "$name" --zone "$zone" \
  --accelerator-type "$type" --version "$version"
run gcloud compute tpus tpu-vm scp "$copy/ddpm.tar.gz" "$copy/ddpm-train.sh" \
  "$name:" --zone "$zone"
# The VM's own Python is older than ddpm needs.
on_vm "tar -xzf ddpm.tar.gz && cd ddpm && python3 -m pip install --user -q uv \
&& ~/.local/bin/uv venv --allow-existing --python 3.12 .venv \
&& DDPM_TENSORFLOW=tensorflow-tpu ~/.local/bin/uv pip install -e . \
-f https://storage.googleapis.com/libtpu-tf-releases/index.html"
on_vm "$train"
