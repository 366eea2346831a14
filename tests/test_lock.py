"""One run, one workdir."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from support import ROOT

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
