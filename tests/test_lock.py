"""One run, one workdir."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from support import ROOT
from support import wait_for
import tensorflow as tf

from ddpm.run import lock
from ddpm.runtime.errors import UserError


def take(path):
  with lock.held(str(path), takes=True):
    return (path / 'lock').read_text()


def test_a_second_run_is_refused_with_the_first_ones_host_and_pid(tmp_path):
  first = f'process {os.getpid()} on {socket.gethostname()}'
  with lock.held(str(tmp_path), takes=True):
    with pytest.raises(UserError, match=f'in use by {first}: wait for it'):
      take(tmp_path)
    with lock.held(str(tmp_path), takes=False):
      pass
  assert take(tmp_path).strip() == first


def test_a_kill_leaves_no_lock(tmp_path):
  code = (
      'import sys, time\nfrom ddpm.run import lock\n'
      'with lock.held(sys.argv[1], takes=True):\n'
      '  print("locked", flush=True)\n  time.sleep(60)\n'
  )
  process = subprocess.Popen(
      [sys.executable, '-c', code, tmp_path],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
  )
  assert process.stdout.readline() == 'locked\n'
  with pytest.raises(UserError, match=f'in use by process {process.pid} on'):
    take(tmp_path)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert str(os.getpid()) in take(tmp_path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A workdir that is no folder, and a lease of 0.5 s."""
  monkeypatch.setattr(lock, '_RENEWAL', 0.1)
  monkeypatch.setattr(lock, '_PATIENCE', 0.5)
  workdir = f'ram://{tmp_path.name}'
  tf.io.gfile.makedirs(workdir)
  return workdir


def wait_for_renewal(bucket):
  before = lock._read_lease(f'{bucket}/lock')
  wait_for(
      lambda: lock._read_lease(f'{bucket}/lock') not in (before, None),
      'a renewal',
  )


def test_a_bucket_is_leased(bucket):
  first = f'process {os.getpid()} on {socket.gethostname()}'
  with lock.held(bucket, takes=True):
    lease = lock._read_lease(f'{bucket}/lock')
    assert (lease['process'], lease['host']) == (
        os.getpid(), socket.gethostname(),
    )  # fmt: skip
    wait_for_renewal(bucket)
    with (
        pytest.raises(UserError, match=f'in use by {first}: wait for it'),
        lock.held(bucket, takes=True),
    ):
      pass
  # It is released, so that the next one need not wait.
  assert not tf.io.gfile.exists(f'{bucket}/lock')


def test_a_stale_lease_is_taken_over(bucket, caplog):
  # Written by a host whose clock is an hour fast.
  dead = {'host': 'other', 'process': 7, 'time': '2999', 'name': 'dead'}
  with tf.io.gfile.GFile(f'{bucket}/lock', 'w') as f:
    f.write(json.dumps(dead))
  with lock.held(bucket, takes=True):
    assert lock._read_lease(f'{bucket}/lock')['process'] == os.getpid()
  assert 'was locked by process 7 on other: waiting 0.5 s' in caplog.text


def test_of_two_that_start_at_once_one_goes_on(bucket, monkeypatch):
  write = lock._write_lease

  def and_another(path, name):
    write(path, name)
    write(path, 'another')

  monkeypatch.setattr(lock, '_write_lease', and_another)
  with (
      pytest.raises(UserError, match='in use by process'),
      lock.held(bucket, takes=True),
  ):
    pass


def test_a_lost_lease_ends_the_process(bucket, monkeypatch, caplog):
  codes = []
  monkeypatch.setattr(lock.os, '_exit', codes.append)
  with lock.held(bucket, takes=True):
    lock._write_lease(f'{bucket}/lock', 'another')
    wait_for(lambda: codes, 'the end')
  assert codes[0] == 1
  assert 'has taken over ram://' in caplog.text


def test_a_bucket_that_fails_for_a_moment_ends_nothing(
    bucket, monkeypatch, caplog
):
  with lock.held(bucket, takes=True):
    write = lock._write_lease
    failures = iter([True])

    def fail_once(path, name):
      if next(failures, False):
        raise tf.errors.UnavailableError(None, None, 'no network')
      write(path, name)

    monkeypatch.setattr(lock, '_write_lease', fail_once)
    wait_for(lambda: 'renewed: no network' in caplog.text, 'the failure')
    wait_for_renewal(bucket)
