"""The number formats of config.precision."""

import json

import pytest
from support import tiny_config
import tensorflow as tf

from ddpm.run import build
from ddpm.run import config as config_lib
from ddpm.runtime import precision


@pytest.fixture(autouse=True)
def restored():
  before = tf.config.experimental.tensor_float_32_execution_enabled()
  yield
  tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.parametrize(
    'name, dtype, rounds',
    [
        ('float32', 'float32', False),
        ('tf32', 'float32', True),
        ('mixed_bfloat16', 'bfloat16', True),
        ('mixed_float16', 'float16', True),
    ],
)
def test_what_xla_is_asked_for(name, dtype, rounds):
  """XLA rounds products unless they are marked as of the highest precision."""
  config = tiny_config()
  config.precision = name
  config.data.image_size = 8
  model = build.make_model(config)
  assert model.compute_dtype == dtype and model.variable_dtype == 'float32'
  function = tf.function(
      lambda x, t: model(x, t), jit_compile=True, autograph=False
  )
  x = tf.zeros([2, *model.image_shape])
  hlo = function.experimental_get_compiler_ir(x, tf.zeros([2]))(stage='hlo')
  products = [
      line for line in hlo.splitlines()
      if ' convolution(' in line or ' dot(' in line
  ]  # fmt: skip
  assert len(products) > 10
  highest = ['operand_precision={highest,highest}' in p for p in products]
  assert not any(highest) if rounds else all(highest)


def test_exact_products_in_a_context_only():
  enabled = tf.config.experimental.tensor_float_32_execution_enabled
  precision.use('tf32')
  with pytest.raises(RuntimeError, match='inside'), precision.exact_products():
    assert not enabled()
    raise RuntimeError('inside')
  assert enabled()


@pytest.mark.parametrize('version', [1, 2])
def test_float32_was_tf32_in_older_runs(tmp_path, version):
  fields = {'precision': 'float32'}
  if version > 1:
    fields['version'] = version
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(fields))
  assert config_lib.load(str(tmp_path)).precision == 'tf32'
  path.write_text(json.dumps(fields | {'version': 3}))
  assert config_lib.load(str(tmp_path)).precision == 'float32'
