"""A workdir that was written before config.json had a version.

Its checkpoint of step 4, the losses of steps 5 to 8 and four samples were
recorded with that version, on a CPU without XLA.
"""

import json
import shutil

import numpy as np
import pytest
from support import metrics
from support import ROOT
from support import run_program

from ddpm.run import config as config_lib
from ddpm.runtime.errors import UserError

OLD = ROOT / 'tests' / 'oracles' / 'workdir_v1'


@pytest.fixture
def workdir(tmp_path):
  return shutil.copytree(OLD, tmp_path / 'old')


def test_settings_are_found_under_their_new_names():
  config = config_lib.load(str(OLD))
  assert config.train.remat
  assert config.model.compat.downsample_padding == 'symmetric'
  assert config.model.compat.embedding_order == 'cos_sin'
  assert config.model.compat.embedding_shift == 0
  assert config.sample.sigma_min == 0.05
  assert config.sample.sigma_max == 20.0
  assert config.sample.rho == 3.0
  assert config.data.shuffle_rounds == 4


def test_a_config_is_written_as_the_new_version(tmp_path):
  config = config_lib.load(str(OLD))
  config_lib.save(config, str(tmp_path))
  fields = json.loads((tmp_path / 'config.json').read_text())
  assert fields['version'] == 4 and 'remat' not in fields['model']
  assert config_lib.load(str(tmp_path)) == config


def test_a_config_of_a_newer_version_is_refused(tmp_path):
  (tmp_path / 'config.json').write_text('{"version": 5}')
  with pytest.raises(UserError, match='it is of version 5, expected at most 4'):
    config_lib.load(str(tmp_path))


@pytest.mark.parametrize('devices', [1, 2])
def test_it_resumes(workdir, devices):
  done = run_program(
      'ddpm.main', f'--config=configs/workdir.py:{workdir}',
      f'--workdir={workdir}', '--config.train.num_steps=8',
      f'--config.distribute.virtual_devices={devices}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = (OLD / 'expected_metrics.jsonl').read_text().splitlines()
  expected = [json.loads(line) for line in lines]
  rows = metrics(workdir)[-4:]
  assert [row['step'] for row in rows] == [5, 6, 7, 8]
  for name in ('loss', 'mse', 'vb', 'gradient_norm'):
    np.testing.assert_allclose(
        [row[name] for row in rows], [row[name] for row in expected], rtol=1e-5
    )


def test_it_is_sampled(workdir, tmp_path):
  done = run_program(
      'ddpm.sample', f'--workdir={workdir}', f'--outdir={tmp_path}/out',
      '--seeds=0-3',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  with (
      np.load(tmp_path / 'out' / 'samples.npz') as new,
      np.load(OLD / 'expected_samples.npz') as old,
  ):
    difference = np.abs(new['images'].astype(int) - old['images'])
    assert difference.max() <= 1 and old['images'].std() > 10
    np.testing.assert_array_equal(new['labels'], old['labels'])
