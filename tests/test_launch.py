"""The launch scripts hand flags on, and refuse with their usage."""

import os
import subprocess
import sys

import pytest
from support import ROOT
from support import wait_for


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


# Stands for Python: each start of ddpm.main is noted, and ends with the next
# code of a list, or sleeps until it is told to stop.
_FAKE = """#!/usr/bin/env bash
[[ $1 == - ]] && exec {python} "$@"
trap 'exit 75' TERM
worker=$({python} -c 'import json, os; print(
    json.loads(os.environ.get("TF_CONFIG", "{{}}"))
    .get("task", {{"index": 0}})["index"])')
echo "$@" >> {log}.$worker
code=$(sed -n "$(wc -l < {log}.$worker)p" {codes}.$worker)
[[ $code ]] && exit "$code"
while true; do sleep 0.1; done
"""


def start_fake(tmp_path, codes, script, *args):
  """Starts a script whose workers end with some codes, start by start."""
  fake = tmp_path / 'python'
  log, ends = tmp_path / 'log', tmp_path / 'codes'
  fake.write_text(_FAKE.format(python=sys.executable, log=log, codes=ends))
  fake.chmod(0o755)
  for worker, sequence in enumerate(codes):
    (tmp_path / f'codes.{worker}').write_text(
        ''.join(f'{code}\n' for code in sequence)
    )
  return subprocess.Popen(
      ['bash', ROOT / 'launch' / script, *args],
      env={**os.environ, 'PYTHON': str(fake)},
      stderr=subprocess.PIPE,
      text=True,
  )


def starts(tmp_path, worker=0):
  return (tmp_path / f'log.{worker}').read_text().splitlines()


def test_local_starts_again_after_75_and_no_other_code(tmp_path):
  process = start_fake(tmp_path, [[75, 75, 3]], 'local.sh', '--workdir=a b')
  assert process.wait(60) == 3
  assert starts(tmp_path) == ['-m ddpm.main --workdir=a b'] * 3


@pytest.mark.parametrize(
    'codes, code, runs',
    [
        ([[75, 0], [75, 0]], 0, 2),
        # One was killed, and the other says that the run would go on.
        ([[75], [137]], 137, 1),
        ([[1], [75]], 1, 1),
    ],
)
def test_multi_worker_starts_all_again_or_none(tmp_path, codes, code, runs):
  args = ('multi_worker.sh', '--local', '2', '--', '--workdir=w')
  process = start_fake(tmp_path, codes, *args)
  assert process.wait(60) == code
  for worker in (0, 1):
    assert len(starts(tmp_path, worker)) == runs


@pytest.mark.parametrize(
    'workers, args',
    [(1, ['local.sh']), (2, ['multi_worker.sh', '--local', '2', '--'])],
)
def test_a_script_that_is_told_to_stop_starts_nothing_again(
    tmp_path, workers, args
):
  process = start_fake(tmp_path, [[]] * workers, *args, '--workdir=w')
  # A worker that is in its log has set its trap.
  for worker in range(workers):
    log = tmp_path / f'log.{worker}'
    wait_for(log.exists, f'start of worker {worker}', process=process)
  process.terminate()
  assert process.wait(60) == 75
  for worker in range(workers):
    assert len(starts(tmp_path, worker)) == 1
