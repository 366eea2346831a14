"""Seconds from the command to the end of the first step.

  python tests/benchmarks/startup.py

For configs/mnist5k.py under XLA: with its cache empty and full, on one device
and on 8 virtual ones. Nothing else should run meanwhile.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent


def seconds_to_step(step, workdir, *flags, **env):
  """Starts the trainer, and stops it once it says that a step is done."""
  started = time.monotonic()
  trainer = subprocess.Popen(
      [sys.executable, '-m', 'ddpm.main', '--config=configs/mnist5k.py',
       f'--workdir={workdir}', *flags],
      cwd=ROOT,
      env=os.environ | env,
      stderr=subprocess.PIPE,
      text=True,
  )  # fmt: skip
  for line in trainer.stderr:
    if f'step {step} done' in line:
      break
  else:
    sys.exit('the trainer ended before its first step')
  seconds = time.monotonic() - started
  trainer.kill()
  trainer.wait()
  return seconds


def first_step(cache, *flags):
  """Seconds to the first step of a new run, with a folder for XLA's cache."""
  with tempfile.TemporaryDirectory() as workdir:
    return seconds_to_step(
        1, workdir, '--config.jit_compile=true', *flags, XDG_CACHE_HOME=cache
    )


def main():
  eight = (
      '--config.distribute.strategy=mirrored',
      '--config.distribute.virtual_devices=8',
  )
  with tempfile.TemporaryDirectory() as cache:
    for name, flags in (('one device', ()), ('8 virtual devices', eight)):
      cold, *warm = [first_step(cache, *flags) for _ in range(4)]
      warm = sorted(warm)[1]
      print(f'{name}: cold {cold:.1f} s, warm {warm:.1f} s (median of 3)')


if __name__ == '__main__':
  main()
