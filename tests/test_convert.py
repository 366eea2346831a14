"""Models to other formats and back; the SavedModel, where ddpm is not."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
from support import error_line
from support import metrics
from support import run_fork
from support import tensors
from support import tiny_config
from support import TINY_WITHOUT_XLA
import tensorflow as tf

from ddpm.formats import diffusers as diffusers_format
from ddpm.nn import flat
from ddpm.run import build
from ddpm.run import lock
from ddpm.runtime.errors import UserError

# Of the tests' tiny network, what diffusers can express.
_MODEL = {
    'model.patch_size': 1,
    'model.channel_multipliers': (1, 2),
    'model.attention_resolutions': (14,),
    'model.num_res_blocks': 1,
}
_CLASSES = {'model.num_classes': 10, 'train.label_dropout': 0.1}


def small_config(**overrides):
  return tiny_config(**(_MODEL | overrides))


def save(directory, config):
  """Saves a network of random weights, and returns these."""
  model = build.make_model(config)
  size = flat.Layout(model).size
  params = np.random.default_rng(0).normal(size=size).astype(np.float32)
  params *= 0.1
  diffusers_format.save(directory, config, model, params)
  return params


def edit(path, **fields):
  """Sets fields of a JSON file."""
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(directory, config):
  with pytest.raises(UserError) as error:
    diffusers_format.load(directory, config)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        _CLASSES,
        {'data.image_size': (8, 16), 'model.attention_resolutions': (4,)},
        {
            'model.channel_multipliers': (1, 1.5),
            'model.head_channels': 12,
        },
        {
            'model.scale_shift_norm': True,
            'model.resample': 'block',
            'model.head_channels': 4,
            'model.num_res_blocks': 2,
        },
        {
            'diffusion.variance': 'learned_range',
            'diffusion.loss': 'vlb',
            'diffusion.schedule': 'cosine',
            'diffusion.prediction': 'v',
            'model.compat.downsample_padding': 'symmetric',
            'model.compat.embedding_order': 'cos_sin',
            'model.compat.embedding_shift': 0,
            'model.norm_epsilon': 1e-5,
        },
        {
            'model.channel_multipliers': (1,),
            'model.attention_resolutions': (28,),
            'model.image_channels': 3,
            'diffusion.variance': 'fixedsmall',
            'diffusion.prediction': 'x0',
        },
    ],
)
def test_there_and_back_changes_nothing(tmp_path, overrides):
  before = small_config(**overrides)
  params = save(tmp_path, before)
  # What the folder says is not in the config that is passed.
  unsaid = ('train.label_dropout', 'diffusion.loss')
  base = tiny_config(**{k: v for k, v in overrides.items() if k in unsaid})
  after, model, back = diffusers_format.load(tmp_path, base)
  assert after.to_dict() == before.to_dict()
  assert flat.Layout(model).size == len(back)
  np.testing.assert_array_equal(back, params)


def test_learned_variance_is_trained_by_the_hybrid_loss(tmp_path):
  learned = {
      'diffusion.variance': 'learned_range', 'diffusion.loss': 'hybrid',
  }  # fmt: skip
  save(tmp_path / 'learned', small_config(**learned))
  save(tmp_path / 'fixed', small_config())
  for name, base in (('learned', {}), ('fixed', learned)):
    loaded, _, _ = diffusers_format.load(tmp_path / name, tiny_config(**base))
    loss = loaded.diffusion.loss
    assert loss == {'learned': 'hybrid', 'fixed': 'simple'}[name]


def test_heads_of_one_width_are_head_channels(tmp_path):
  save(tmp_path, small_config(**{'model.num_heads': 2}))
  loaded, _, _ = diffusers_format.load(tmp_path, tiny_config())
  assert loaded.model.head_channels == 8


def test_fewer_timesteps_than_steps_of_the_sampler(tmp_path):
  save(tmp_path, small_config())
  edit(tmp_path / 'scheduler/scheduler_config.json', num_train_timesteps=1)
  loaded, _, _ = diffusers_format.load(tmp_path, tiny_config())
  assert loaded.sample.steps == 1


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
  """A folder of diffusers, its config and weights. Not to be changed."""
  directory = tmp_path_factory.mktemp('pipeline')
  config = small_config()
  return directory, config, save(directory, config)


@pytest.fixture
def copy(pipeline, tmp_path):
  """The same, to be changed."""
  directory = tmp_path / 'copy'
  subprocess.run(['cp', '-r', pipeline[0], directory], check=True)
  return directory


def test_a_unet_alone_has_the_process_of_the_config(pipeline):
  directory, _, params = pipeline
  base = tiny_config(**{'diffusion.schedule': 'cosine'})
  loaded, _, back = diffusers_format.load(directory / 'unet', base)
  assert loaded.diffusion.to_dict() == base.diffusion.to_dict()
  np.testing.assert_array_equal(back, params)


def test_old_folders_and_names(pipeline, copy):
  """As google/ddpm-cifar10-32: all in one folder, and few fields."""
  _, config, params = pipeline
  for path in [*copy.glob('unet/*'), *copy.glob('scheduler/*')]:
    path.rename(copy / path.name)
  (copy / 'unet').rmdir()
  unet = json.loads((copy / 'config.json').read_text())
  for name in ('resnet_time_scale_shift', 'num_class_embeds', 'add_attention'):
    del unet[name]
  (copy / 'config.json').write_text(json.dumps(unet))
  path = copy / 'diffusion_pytorch_model.safetensors'
  renamed = {}
  for name, tensor in safetensors.load_file(path).items():
    for new, old in (
        ('to_q', 'query'),
        ('to_k', 'key'),
        ('to_v', 'value'),
        ('to_out.0', 'proj_attn'),
    ):
      name = name.replace(f'.{new}.', f'.{old}.')
    renamed[name] = tensor
  assert any('.proj_attn.' in name for name in renamed)
  safetensors.save_file(renamed, path)
  loaded, _, back = diffusers_format.load(copy, tiny_config())
  assert loaded.to_dict() == config.to_dict()
  np.testing.assert_array_equal(back, params)


def test_weights_in_several_files(pipeline, copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  weights = safetensors.load_file(path)
  path.unlink()
  files = ('a.safetensors', 'b.safetensors')
  where = {name: files[i % 2] for i, name in enumerate(weights)}
  for file in files:
    part = {name: weights[name] for name in weights if where[name] == file}
    safetensors.save_file(part, copy / 'unet' / file)
  index = copy / 'unet/diffusion_pytorch_model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': where}))
  _, _, back = diffusers_format.load(copy, tiny_config())
  np.testing.assert_array_equal(back, pipeline[2])


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_weights_of_16_bits(pipeline, copy, dtype):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  weights = safetensors.load_file(path)
  safetensors.save_file({k: v.astype(dtype) for k, v in weights.items()}, path)
  _, _, back = diffusers_format.load(copy, tiny_config())
  expected = pipeline[2].astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('_class_name', 'UNet2DConditionModel', "expected 'UNet2DModel'"),
        ('time_embedding_type', 'fourier', "expected 'positional'"),
        ('time_embedding_dim', 77, 'expected None or 32'),
        ('center_input_sample', True, 'expected False'),
        ('mid_block_type', None, "expected 'UNetMidBlock2D'"),
        ('mid_block_scale_factor', 1.5, 'expected 1'),
        ('act_fn', 'gelu', "expected 'silu' or 'swish'"),
        ('add_attention', False, 'expected True'),
        ('class_embed_type', 'timestep', 'expected None'),
        ('attn_norm_num_groups', 2, 'expected 4 or None'),
        ('resnet_time_scale_shift', 'spatial', "'default' or 'scale_shift'"),
        ('freq_shift', 2, 'expected 0 or 1'),
        ('downsample_padding', 2, 'expected 0 or 1'),
        ('sample_size', None, 'expected height, or [height, width]'),
        ('sample_size', [28, 32, 1], 'expected height, or [height, width]'),
        ('block_out_channels', [], 'expected the channels of each level'),
        ('block_out_channels', [0, 8], 'expected the channels of each level'),
        ('out_channels', 2, 'expected 1: in_channels, doubled if'),
        ('down_block_types', ['DownBlock2D'], 'as many as in block_out'),
        (
            'down_block_types',
            ['AttnDownBlock2D', 'SkipDownBlock2D'],
            'expected only DownBlock2D, ',
        ),
        (
            'up_block_types',
            ['UpBlock2D', 'AttnUpBlock2D'],
            'attention at the same levels as in down_block_types',
        ),
        ('upsample_type', 'resnet', 'resample by conv, resnet, expected'),
        ('attention_head_dim', 3, 'model.head_channels is 3, which does not'),
        ('layers_per_block', 'two', 'cannot be converted'),
    ],
)
def test_refuses_a_unet(copy, field, value, message):
  edit(copy / 'unet/config.json', **{field: value})
  assert message in refusal(copy, tiny_config())


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('_class_name', 'PNDMScheduler', "expected 'DDPMScheduler'"),
        ('beta_schedule', 'sigmoid', "'linear' or 'squaredcos_cap_v2'"),
        ('prediction_type', 'flow', "'epsilon' or 'sample' or 'v_prediction'"),
        ('variance_type', 'learned', "'fixed_small' or 'fixed_large' or"),
        ('trained_betas', [0.1], 'expected None'),
        ('thresholding', True, 'expected False'),
        ('clip_sample', False, 'expected True'),
        ('clip_sample_range', 2.0, 'expected 1.0'),
        ('rescale_betas_zero_snr', True, 'expected False'),
    ],
)
def test_refuses_a_scheduler(copy, field, value, message):
  path = copy / 'scheduler/scheduler_config.json'
  edit(path, **{field: value})
  said = refusal(copy, tiny_config())
  assert message in said
  assert f'{path}: {field} is {value!r}' in said


def test_refuses_other_pipelines(copy):
  edit(copy / 'model_index.json', _class_name='LDMPipeline')
  assert "_class_name is 'LDMPipeline'" in refusal(copy, tiny_config())


def test_refuses_a_pipeline_without_scheduler(copy):
  (copy / 'scheduler/scheduler_config.json').unlink()
  assert 'has no scheduler/' in refusal(copy, tiny_config())


def test_refuses_what_is_no_folder_of_diffusers(tmp_path):
  said = refusal(tmp_path, tiny_config())
  assert f'{tmp_path}/config.json cannot be read: No such file' in said


def test_refuses_what_is_not_json(copy):
  (copy / 'unet/config.json').write_text('{')
  assert 'unet/config.json is not JSON' in refusal(copy, tiny_config())


def test_refuses_other_weights(copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  weights = safetensors.load_file(path)
  weights['conv_in.bias'] = np.zeros([3], np.float32)
  weights['conv_outer.bias'] = weights.pop('conv_out.bias')
  safetensors.save_file(weights, path)
  said = refusal(copy, tiny_config())
  assert 'conv_in.bias is [3], expected [8]' in said
  assert 'conv_out.bias is missing' in said
  assert 'conv_outer.bias is unknown' in said


def test_refuses_quantized_weights(copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  weights = safetensors.load_file(path)
  weights['conv_in.bias'] = weights['conv_in.bias'].astype(np.int8)
  safetensors.save_file(weights, path)
  assert 'conv_in.bias is int8' in refusal(copy, tiny_config())


def test_refuses_damaged_weights(copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  path.write_bytes(path.read_bytes()[:1000])
  assert f'{path} cannot be read' in refusal(copy, tiny_config())


def test_refuses_weights_that_are_not_finite(copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  for value in (np.nan, np.inf):
    weights = safetensors.load_file(path)
    weights['conv_in.bias'][3] = value
    safetensors.save_file(weights, path)
    said = refusal(copy, tiny_config())
    assert 'weights that are not finite: conv_in.bias: save or dow' in said


@pytest.mark.parametrize('variant', ['fp16', 'non_ema'])
def test_a_variant_of_the_weights(pipeline, copy, variant):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  weights = safetensors.load_file(path)
  other = path.with_name(f'diffusion_pytorch_model.{variant}.safetensors')
  # What has no variant comes first.
  safetensors.save_file({'unknown': np.zeros(3, np.float32)}, other)
  _, _, back = diffusers_format.load(copy, tiny_config())
  np.testing.assert_array_equal(back, pipeline[2])
  path.rename(other)
  _, _, back = diffusers_format.load(copy, tiny_config())
  np.testing.assert_array_equal(back, pipeline[2])
  # In several files.
  other.unlink()
  part = f'diffusion_pytorch_model.{variant}-00001-of-00001.safetensors'
  safetensors.save_file(weights, path.with_name(part))
  index = path.with_name(f'{path.name}.index.{variant}.json')
  index.write_text(json.dumps({'weight_map': dict.fromkeys(weights, part)}))
  _, _, back = diffusers_format.load(copy, tiny_config())
  np.testing.assert_array_equal(back, pipeline[2])
  edit(index, weight_map=None)
  assert 'weight_map is None, expected' in refusal(copy, tiny_config())
  other.write_bytes(b'')
  path.with_name('diffusion_pytorch_model.bf16.safetensors').write_bytes(b'')
  said = refusal(copy, tiny_config())
  assert f'has the variants bf16, {variant} of its weights' in said


def test_refuses_pickled_weights(copy):
  path = copy / 'unet/diffusion_pytorch_model.safetensors'
  path.rename(copy / 'unet/diffusion_pytorch_model.bin')
  assert 'safe_serialization=True' in refusal(copy, tiny_config())


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'model.patch_size': 2}, 'model.patch_size is 2'),
        ({'model.variant': 'ddpmpp'}, "model.variant is 'ddpmpp'"),
        ({'model.channel_multipliers': (2, 2)}, 'expected 1'),
        (
            {'model.num_heads': 2, 'model.attention_resolutions': (14, 28)},
            '4, 8 channels per head at different levels',
        ),
        (
            {'diffusion.rescale_timesteps': True},
            'diffusion.rescale_timesteps is True with 20 timesteps',
        ),
        (
            {
                'diffusion.schedule': 'edm',
                'diffusion.prediction': 'edm',
                'diffusion.timesteps': 'lognormal',
            },
            "diffusion.prediction is 'edm'",
        ),
    ],
)
def test_refuses_what_diffusers_does_not_have(tmp_path, overrides, message):
  with pytest.raises(UserError, match=message):
    save(tmp_path, small_config(**overrides))
  assert not list(tmp_path.iterdir())


def convert(root, config, *args):
  """Saves a pipeline, and makes a workdir of it."""
  save(root / 'pipeline', config)
  done = run_fork(
      'ddpm.convert', f'--from_diffusers={root}/pipeline',
      f'--workdir={root}/workdir', *TINY_WITHOUT_XLA, *args,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'parameters; next: python -m ddpm.sample' in done.stderr
  return root / 'pipeline', root / 'workdir'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Of a class-conditional model."""
  return convert(
      tmp_path_factory.mktemp('run'),
      small_config(**_CLASSES),
      '--config.train.label_dropout=0.1',
  )


def test_the_workdir_is_a_run_at_step_0(run):
  state = {
      name.partition('/.')[0]: value
      for name, value in tensors(run[1], 0).items()
  }
  assert state['step'] == 0
  assert np.any(state['params'])
  np.testing.assert_array_equal(state['ema/0..995'], state['params'])
  assert not np.any(state['adam_m']) and not np.any(state['adam_v'])


def test_the_programs_end_where_they_began(run, tmp_path):
  pipeline, workdir = run
  done = run_fork(
      'ddpm.convert', f'--to_diffusers={tmp_path}/back', f'--workdir={workdir}'
  )
  assert done.returncode == 0, done.stderr
  assert "DDPMPipeline.from_pretrained('" in done.stderr
  names = [p.relative_to(pipeline) for p in pipeline.rglob('*.*')]
  assert len(names) == 4
  for name in names:
    assert (tmp_path / 'back' / name).read_bytes() == (
        pipeline / name
    ).read_bytes()
  assert os.listdir(tmp_path) == ['back']


def test_trains_on(run, tmp_path):
  workdir = tmp_path / 'workdir'
  subprocess.run(['cp', '-r', run[1], workdir], check=True)
  done = run_fork(
      'ddpm.main', f'--config=configs/workdir.py:{workdir}',
      f'--workdir={workdir}', '--config.train.num_steps=2',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert [row['step'] for row in metrics(workdir)] == [1, 2]


_SERVE = """
import sys
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures['serving_default']
def images(seeds, labels):
  return serve(seeds=tf.constant(seeds), labels=tf.constant(labels))['images']
images([5], [0])
np.save(sys.argv[2], images([0, 1, 2, 3, 14], [0, 1, 2, 3, 4]))
assert 'ddpm' not in sys.modules
"""


@pytest.mark.parametrize(
    ('conditional', 'settings', 'what'),
    [
        (True, ['--sampler=ddim', '--steps=3', '--guidance=2'], 'ddim of 3'),
        (False, ['--weights=raw'], 'ancestral of 2'),
    ],
)
def test_a_saved_model_draws_the_same_images(
    request, tmp_path, conditional, settings, what
):
  if conditional:
    _, workdir = request.getfixturevalue('run')
  else:
    _, workdir = convert(tmp_path, small_config())
  done = run_fork(
      'ddpm.convert', f'--to_savedmodel={tmp_path}/model',
      f'--workdir={workdir}', *settings,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert f' of step 0, {what} steps' in done.stderr
  subprocess.run(
      [sys.executable, '-c', _SERVE, 'model', 'images.npy'],
      cwd=tmp_path,
      check=True,
  )
  done = run_fork(
      'ddpm.sample', f'--workdir={workdir}', f'--outdir={tmp_path}/out',
      '--seeds=0-3,14', *settings,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 'out/samples.npz') as file:
    expected = file['images']
  images = np.load(tmp_path / 'images.npy')
  assert images.dtype == np.uint8 and images.shape == (5, 28, 28, 1)
  difference = np.abs(images.astype(int) - expected.astype(int))
  print(f'{what}: {np.mean(difference > 0):.2%} differ')
  assert np.mean(difference <= 1) > 0.999
  assert len(np.unique(images)) > 10
  # All weights in one variable.
  variables = tf.train.list_variables(f'{tmp_path}/model/variables/variables')
  sizes = [shape for name, shape in variables if name.startswith('params')]
  assert len(sizes) == 1 and sizes[0][0] > 40_000


def test_of_two_conversions_at_once_the_second_is_refused(run, tmp_path):
  path = tmp_path / 'back'
  command = (
      'ddpm.convert', f'--to_diffusers={path}', f'--workdir={run[1]}',
  )  # fmt: skip
  with lock.held(str(path), kind='to_diffusers', path=f'{path}.lock'):
    line = error_line(run_fork(*command))
  assert f'--to_diffusers {path} is in use by process' in line
  done = run_fork(*command)
  assert done.returncode == 0, done.stderr
  assert os.listdir(tmp_path) == ['back']


# Arguments that are wrong, and a part of the line that says so.
ERRORS = [
    (['--workdir=w', '--to_diffusers=a', '--to_savedmodel=b'], 'got 2'),
    (['--to_diffusers=a'], '--workdir is missing'),
    (['--from_diffusers=a', '--workdir=ddpm'], 'ddpm is not empty'),
    (['--workdir=w', '--config=configs/workdir.py:tests'],
     "--config: 'tests' has no config.json"),
]  # fmt: skip


def test_refuses_in_one_line():
  for args, message in ERRORS:
    done = run_fork('ddpm.convert', *args)
    assert message in error_line(done), args
