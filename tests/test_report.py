"""Where scores go: one row for each thing that was scored, and the plots."""

from concurrent import futures
import json

import pytest
import tensorflow as tf

from ddpm.metrics import report


def result(fd, **details):
  return {
      'fd_mnist@100': fd,
      'kid_mnist@100': -0.012345678,
      'kid_stderr_mnist@100': 0.1,
      'details': {
          'step': 10,
          'weights': 'ema:0.99',
          'sampler': 'ddim',
          'steps': 20,
          'extractor': 'mnist',
          'num_samples': 100,
          'data': 'mnist5k',
          'split': 'train',
          'floor': {'fd_mnist@100': 1.5},
      }
      | details,
  }


def test_table():
  lines = report.table(result(123.456)).splitlines()
  assert lines[0].split('  ')[0] == 'metric' and len(lines) == 4
  assert lines[1].split() == ['fd_mnist@100', '123.5', '1.5']
  # A score without a floor leaves its place empty.
  assert lines[2].split() == ['kid_mnist@100', '-0.01235']
  assert len({len(line) for line in lines}) == 1


def test_the_later_of_two_results_of_one_thing_stands(tmp_path):
  first = result(9.0, step=20)
  report.record(str(tmp_path), first)
  report.record(str(tmp_path), result(8.0))
  report.record(str(tmp_path), result(7.0))
  for name, other in {
      'weights': 'raw', 'sampler': 'ancestral', 'num_samples': 50,
      'extractor': 'inception', 'data': 'tfds:mnist', 'split': 'test',
      'eta': 0.5, 'guidance': 2.0,
  }.items():  # fmt: skip
    report.record(str(tmp_path), result(6.0, **{name: other}))
  lines = (tmp_path / 'evaluation.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 10
  assert rows[0]['fd_mnist@100'] == 7.0
  # In the order of steps.
  assert rows[-1] == first


def test_what_is_not_finite_is_null_and_a_gap_in_the_curve(tmp_path):
  for step, value in ((10, 9.0), (20, float('nan')), (30, 7.0)):
    report.record(str(tmp_path), result(value, step=step))
  lines = (tmp_path / 'evaluation.jsonl').read_text().splitlines()
  rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
  assert [row['fd_mnist@100'] for row in rows] == [9.0, None, 7.0]
  assert (tmp_path / 'evaluation.png').exists()
  assert 'nan' in report.table(result(float('nan')))


def test_results_of_processes_at_once_are_all_kept(tmp_path):
  """Each reads the file and writes it anew."""
  steps = range(12)
  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(
        lambda step: report.record(str(tmp_path), result(1.0, step=step)), steps
    ))  # fmt: skip
  lines = (tmp_path / 'evaluation.jsonl').read_text().splitlines()
  assert [json.loads(line)['details']['step'] for line in lines] == list(steps)


def test_bits_of_two_splits_are_two_results(tmp_path):
  for split, bits in {'train': 2.0, 'test': 3.0}.items():
    report.record(
        str(tmp_path), result(1.0, bpd_split=split) | {'bpd@9': bits}
    )
  lines = (tmp_path / 'evaluation.jsonl').read_text().splitlines()
  assert [json.loads(line)['bpd@9'] for line in lines] == [2.0, 3.0]


@pytest.mark.parametrize('steps', [[20], [20, 50]])
def test_a_curve_over_the_steps_of_the_sampler(tmp_path, steps):
  for n in steps:
    report.record(str(tmp_path), result(100 / n, steps=n))
  picture = tf.io.decode_png((tmp_path / 'evaluation.png').read_bytes())
  # Two panels: how sure a score is has none.
  assert picture.shape[:2] == (350, 1000)
  assert (tmp_path / 'evaluation_steps.png').exists() == (len(steps) > 1)
