#!/usr/bin/env bash
# Creates a Cloud TPU VM (or slice), installs ddpm on all its hosts, and trains.
# The workdir should be in a bucket. Flags after -- are ddpm.main's.
# --dry_run prints the commands without running them. --slice is for types with
# several hosts, whose versions end in -pod.
#
#   launch/tpu_vm.sh --name my-tpu --zone us-central2-b --type v4-8 \
#     --version tpu-vm-tf-2.16.1-pjrt -- \
#     --config=configs/cifar10.py --workdir=gs://my-bucket/cifar10
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "tpu_vm.sh: $1" >&2
  sed -n '2,/^set /p' "$0" | grep '^#' >&2
  exit 1
}

name='' zone='' type='' version='' dry_run='' slice=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --name) name=${2:-}; shift 2 || usage '--name needs a value' ;;
    --zone) zone=${2:-}; shift 2 || usage '--zone needs a value' ;;
    --type) type=${2:-}; shift 2 || usage '--type needs a value' ;;
    --version) version=${2:-}; shift 2 || usage '--version needs a value' ;;
    --dry_run) dry_run=1; shift ;;
    --slice) slice=1; shift ;;
    --) shift; break ;;
    *) usage "unknown argument $1" ;;
  esac
done
for flag in name zone type version; do
  [[ -n ${!flag} ]] || usage "--$flag is missing"
done

run() {
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_hosts() { # command
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker all \
    --command "$1"
}

run gcloud compute tpus tpu-vm create "$name" --zone "$zone" \
  --accelerator-type "$type" --version "$version"
run gcloud compute tpus tpu-vm scp --recurse . "$name:ddpm" --zone "$zone" \
  --worker all
on_all_hosts "cd ddpm && DDPM_TENSORFLOW=tensorflow-tpu pip install -e . \
-f https://storage.googleapis.com/libtpu-tf-releases/index.html"

flags=$(printf '%q ' "$@")
train="cd ddpm && PYTHON=python3 launch/local.sh \
$flags--config.distribute.strategy=tpu"
# One process, on the first host, drives the whole slice.
if [[ -n $slice ]]; then
  train="export TPU_NAME=$name TPU_LOAD_LIBRARY=0 && $train"
fi
run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker 0 \
  --command "$train"
