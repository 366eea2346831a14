"""The launch scripts hand flags on, and refuse with their usage."""

import os
import subprocess
import sys

from conftest import ROOT


def launch(script, *args):
  return subprocess.run(
      ['bash', ROOT / 'launch' / script, *args],
      env={**os.environ, 'PYTHON': sys.executable},
      capture_output=True,
      text=True,
      check=False,
  )


def test_tpu_vm_prints_its_commands():
  done = launch(
      'tpu_vm.sh', '--dry_run', '--slice', '--name', 'me', '--zone', 'z',
      '--type', 'v4-16', '--version', 'v', '--', '--config=configs/a b.py',
      '--workdir=gs://bucket/run',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  create, copy, install, train = done.stdout.splitlines()
  assert create.startswith('gcloud compute tpus tpu-vm create me --zone z')
  assert ' scp --recurse . me:ddpm' in copy
  assert 'tensorflow-tpu' in install and '--worker all' in install
  assert 'gs://bucket/run' in train and 'TPU_NAME' in train


def test_scripts_refuse_with_their_usage():
  for script, args in (
      ('tpu_vm.sh', ['--name', 'me']),
      ('multi_worker.sh', ['--local', 'two']),
      ('multi_worker.sh', ['--index', '0']),
      ('multi_worker.sh', ['--config=x']),
  ):
    done = launch(script, *args)
    assert done.returncode == 1
    assert f'launch/{script}' in done.stderr


def test_local_hands_flags_on():
  done = launch('local.sh', '--config=configs/mnist5k.py')
  assert done.returncode == 1
  assert '--workdir is missing' in done.stderr
