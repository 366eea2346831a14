"""Processes that take turns, so that all are measured in the same minutes.

Each is a script that was started with `--worker NAME`. It prints a line once it
is ready, and one measurement, a dict as JSON, per line that it reads.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent


class Worker:
  """A process that measures something when it is told to.

  Attributes:
    ready: what it said when it was ready.

  Args:
    script: its file.
    name: what it measures.
    **env: further environment variables.
  """

  def __init__(self, script, name, **env):
    self._process = subprocess.Popen(
        [sys.executable, script, '--worker', name],
        env=os.environ | {'PYTHONPATH': str(ROOT)} | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    self.ready = self._answer()
    self._turns = []

  def take_turn(self):
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    self._turns.append(self._answer())

  def medians(self):
    """Of its measurements, by name."""
    return {
        name: statistics.median(turn[name] for turn in self._turns)
        for name in self._turns[0]
    }

  def close(self):
    self._process.stdin.close()
    self._process.wait()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      sys.exit('a worker ended: see above')
    return json.loads(line)


def measure(workers, *, turns=3):
  """Lets workers take turns, and closes them.

  Returns:
    The medians of each.
  """
  for _ in range(turns):
    for worker in workers:
      worker.take_turn()
  for worker in workers:
    worker.close()
  return [worker.medians() for worker in workers]


def serve(ready, measure_once):
  """A worker's part.

  Args:
    ready: what to say first.
    measure_once: function () -> dict of numbers.
  """
  print(json.dumps(ready), flush=True)
  for _ in sys.stdin:
    print(json.dumps(measure_once()), flush=True)
