"""What the tests share: a tiny experiment, and programs run as users do."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
from oracles import weights
import pytest
import tensorflow as tf

from configs import mnist5k
from ddpm.diffusion import process as process_lib
from ddpm.diffusion import schedules
from ddpm.nn import flat
from ddpm.nn import unet

ROOT = pathlib.Path(__file__).parent.parent

# What makes of mnist5k a network that compiles in seconds, with all that is
# random turned on. XLA compiles it, as it does by default on GPUs and TPUs.
_TINY = {
    'jit_compile': True,
    'report': False,
    'model.channels': 8,
    'model.channel_multipliers': (1,),
    'model.attention_resolutions': (),
    'model.norm_groups': 4,
    'model.patch_size': 4,
    'model.num_classes': 0,
    'model.scale_shift_norm': False,
    'data.random_flip': True,
    'model.dropout': 0.1,
    'diffusion.num_timesteps': 20,
    'optimizer.warmup_steps': 2,
    'train.batch_size': 8,
    'train.steps_per_loop': 2,
    'train.log_every_steps': 1,
    'train.checkpoint_every_steps': 2,
    'train.sample_every_steps': 0,
    'sample.sampler': 'ancestral',
    'sample.steps': 2,
    'sample.eta': 0.0,
}

# The same, for a command line.
TINY = [
    f'--config={ROOT}/configs/mnist5k.py',
    *(f'--config.{name}={value}' for name, value in _TINY.items()),
]

# Compiling takes XLA ten times as long as all else that a short run does: for
# what XLA has no part in.
TINY_WITHOUT_XLA = [*TINY, '--config.jit_compile=false']


def tiny_config(**overrides):
  """The same, as a config; overrides as {'train.num_steps': 2}."""
  config = mnist5k.get_config()
  config.update_from_flattened_dict(_TINY | overrides)
  return config.lock()


_SET_BY_DDPM = (
    'TF_CPP_MIN_LOG_LEVEL', 'TF_XLA_FLAGS', 'KERAS_BACKEND',
    'TF_ENABLE_ONEDNN_OPTS',
)  # fmt: skip


def _inherited():
  """The environment, without what ddpm sets in it."""
  return {k: v for k, v in os.environ.items() if k not in _SET_BY_DDPM}


def start_program(module, *args, **env):
  """Starts `python -m MODULE`, with its output to be read as text."""
  return subprocess.Popen(
      [sys.executable, '-m', module, *map(str, args)],
      cwd=ROOT,
      env=_inherited() | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


def run_program(module, *args, **env):
  """Runs it to its end."""
  process = start_program(module, *args, **env)
  stdout, stderr = process.communicate()
  return subprocess.CompletedProcess(
      process.args, process.returncode, stdout, stderr
  )


def wait_for(condition, what, *, process=None, seconds=120):
  """Waits until a condition holds.

  Args:
    condition: function () -> whether it holds.
    what: it waits for, in words.
    process: that is to make it hold: the test fails if it ends before.
    seconds: until the test fails, and the process is killed.

  Returns:
    What the condition returned.
  """
  deadline = time.monotonic() + seconds
  while True:
    ended = process is not None and process.poll() is not None
    if value := condition():
      return value
    if ended:
      pytest.fail(f'it ended before {what}: {process.communicate()}')
    if time.monotonic() > deadline:
      if process is not None:
        process.kill()
      pytest.fail(f'no {what} within {seconds} s')
    time.sleep(0.05)


def wait_for_line(process, text, *, seconds=120):
  """Reads what a program says on stderr, up to the line with a text.

  The test fails if the program ends before; after some seconds it is killed.
  """
  said = []
  deadline = threading.Timer(seconds, process.kill)
  deadline.start()
  for line in process.stderr:
    said.append(line)
    if text in line:
      deadline.cancel()
      return
  deadline.cancel()
  pytest.fail(
      f'no {text!r} within {seconds} s, or before it ended with'
      f' {process.wait()}: {"".join(said)}'
  )


def metrics(workdir):
  """The rows of a run's log."""
  lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def tensors(workdir, step):
  """All that a checkpoint holds of the state, by name."""
  reader = tf.train.load_checkpoint(f'{workdir}/checkpoints/ckpt-{step}')
  return {
      name: reader.get_tensor(name)
      for name in reader.get_variable_to_shape_map()
      if name != '_CHECKPOINTABLE_OBJECT_GRAPH' and 'save_counter' not in name
  }


def with_oracle(extractor, name, height, width):
  """What an extractor says under XLA, and what its original in PyTorch said.

  Args:
    extractor: `base.Extractor`.
    name: of the script in oracles/ that asked the original.
    height, width: of the images.

  Returns:
    features and probabilities, of the one and of the other.
  """
  images = weights.random_images(height, width, weights.SEED)
  function = tf.function(extractor.function, jit_compile=True)
  features, probabilities = function(extractor.weights, images)
  with np.load(ROOT / 'tests' / 'oracles' / f'{name}.npz') as expected:
    expected_features = expected[f'features_{height}x{width}']
    exp = np.exp(expected[f'logits_{height}x{width}'])
  softmax = exp / exp.sum(axis=1, keepdims=True)
  return features, probabilities, expected_features, softmax


class Network:
  """A tiny U-Net with what goes with it."""

  def __init__(self, **kwargs):
    settings = {
        'image_size': 8,
        'image_channels': 1,
        'channels': 8,
        'channel_multipliers': (1, 2),
        'num_res_blocks': 1,
        'attention_resolutions': (4,),
        'norm_groups': 4,
    } | kwargs
    self.model = unet.UNet(**settings)
    self.layout = flat.Layout(self.model)
    betas = schedules.betas_for(
        'linear', 20, beta_start=1e-3, beta_end=0.2
    )
    self.diffusion = process_lib.Diffusion(betas)
    # Not the initial weights: those make every block the identity.
    self.params = flat.flatten(self.model.trainable_variables)
    self.params += 0.05 * tf.random.stateless_normal(self.params.shape, (1, 2))


def refused(module, *args, after_log=False, **env):
  """Runs a program that has to fail, and returns its one line on stderr.

  Args:
    module: of the program, 'ddpm.sample'.
    *args: its flags.
    after_log: whether log lines may come before that line.
    **env: environment variables.
  """
  return error_line(run_program(module, *args, **env), after_log=after_log)


# Has imported the programs; runs one, in a fork, for each line of standard
# input: its module and its arguments.
_SERVER = """
import importlib, json, os, runpy, sys, tempfile

sys.argv = ['-m']  # As `python -m` has it while it imports a program.
for name in ('main', 'sample', 'evaluate', 'convert', 'report'):
  importlib.import_module(f'ddpm.{name}')
  del sys.modules[f'ddpm.{name}']
for line in sys.stdin:
  module, args = json.loads(line)
  with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
    if not (pid := os.fork()):
      os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
      os.dup2(stdout.fileno(), 1)
      os.dup2(stderr.fileno(), 2)
      sys.argv = ['-m', *args]
      runpy.run_module(module, run_name='__main__', alter_sys=True)
      sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    stdout.seek(0)
    stderr.seek(0)
    end = code, stdout.read().decode(), stderr.read().decode()
    print(json.dumps(end), flush=True)
"""


@functools.cache
def _server():
  # It ends with this process, at the end of its input.
  return subprocess.Popen(
      [sys.executable, '-c', _SERVER],
      cwd=ROOT,
      env=_inherited(),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
  )


def run_fork(module, *args):
  """As `run_program`, but without the seconds that it takes to import.

  For runs where the start is not the point. The program is a process of its
  own, which begins where TensorFlow is imported and has done nothing yet.
  """
  server = _server()
  args = [str(arg) for arg in args]
  server.stdin.write(json.dumps([module, args]) + '\n')
  server.stdin.flush()
  return subprocess.CompletedProcess(
      args, *json.loads(server.stdout.readline())
  )


def error_line(done, *, after_log=False):
  """The one line that a program that failed leaves on stderr."""
  assert done.returncode == 1, done.stderr
  assert 'Traceback' not in done.stderr
  lines = done.stderr.strip().splitlines()
  assert after_log or len(lines) == 1, done.stderr
  assert lines[-1].startswith('ddpm: error: ')
  return lines[-1]


# Of the images of `gaussian_network`.
GAUSSIAN_SHAPE = (2, 2, 1)


def gaussian_network(process, mean=0.2, std=0.2):
  """The optimal network, for pixels ~ N(mean, std^2)."""

  def network(x, time):
    if isinstance(process, process_lib.EDM):
      sigma = tf.exp(4.0 * time)[:, None, None, None]
      alpha = tf.ones_like(sigma)
      x *= tf.sqrt(sigma**2 + process.sigma_data**2)  # undoes c_in
    else:
      # By the time as it is told, which may lie between two timesteps.
      ratios = 0.5 * np.log(1 / process.alphas_cumprod - 1)
      ratios = tf.constant(ratios, tf.float32)
      time = tf.cast(time, tf.float32)
      i = tf.minimum(tf.cast(time, tf.int32), process.num_timesteps - 2)
      ratio, end = tf.gather(ratios, i), tf.gather(ratios, i + 1)
      ratio = tf.exp(ratio + (time - tf.cast(i, tf.float32)) * (end - ratio))
      ratio = ratio[:, None, None, None]
      alpha = 1.0 / tf.sqrt(1.0 + ratio**2)
      sigma = ratio * alpha
    total = (alpha * std) ** 2 + sigma**2
    noise = sigma * (x - alpha * mean) / total
    x0 = mean + alpha * std**2 * (x - alpha * mean) / total
    alpha, sigma = tf.cast(alpha, tf.float64), tf.cast(sigma, tf.float64)
    _, c_skip, c_out = process.preconditioning(alpha, sigma)
    xt = alpha * tf.cast(x0, tf.float64) + sigma * tf.cast(noise, tf.float64)
    return tf.cast((tf.cast(x0, tf.float64) - c_skip * xt) / c_out, tf.float32)

  return network
