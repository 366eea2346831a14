"""The report of a run, as a page that somebody opens."""

import html.parser
import json
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request

from absl import flags
from ml_collections import config_flags
import numpy as np
import pytest
from support import error_line
from support import ROOT
from support import run_fork
from support import start_program
from support import TINY_WITHOUT_XLA

from ddpm.reporting import charts
from ddpm.reporting import drawings
from ddpm.reporting import facts as facts_lib
from ddpm.reporting import page
from ddpm.run import config as config_lib
from ddpm.runtime import png

OLD = ROOT / 'tests' / 'oracles' / 'workdir_v1'

# What a page could be broken by. TensorFlow reads no checkpoint under brackets.
ODD = 'a <b> & "c" [1] é'


class Parsed(html.parser.HTMLParser):
  """The elements of a page, and its text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text = [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]


def check_page(text):
  """What holds for every page; returns it parsed."""
  assert len(text.encode()) < 5_000_000
  parsed = Parsed(text)
  for tag, attributes in parsed.elements:
    for name in ('src', 'href', 'xlink:href', 'action', 'poster', 'data'):
      value = attributes.get(name, '#')
      assert value.startswith(('data:', '#')), (tag, name, value)
  assert 'url(h' not in text and '@import' not in text
  assert all(image['alt'] for image in parsed.all('img'))
  ids = [a['id'] for _, a in parsed.elements if 'id' in a]
  assert len(ids) == len(set(ids))
  used = re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text)
  assert set(used) <= set(ids)
  assert not parsed.all('b'), 'the name of a folder is not escaped'
  return parsed


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir with a report by the trainer; what the trainer said."""
  workdir = tmp_path_factory.mktemp('a <b> run')
  done = run_fork(
      'ddpm.main', *TINY_WITHOUT_XLA, f'--workdir={workdir}',
      '--config.train.num_steps=4', '--config.train.sample_every_steps=2',
      '--config.model.num_classes=10', '--config.report',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return workdir, done


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy of it, under a name that is hard to escape."""
  return shutil.copytree(trained[0], tmp_path / ODD)


def render(workdir, *others, **kwargs):
  run, *others = [facts_lib.read(str(path)) for path in (workdir, *others)]
  return check_page(page.render(run, others=others, **kwargs))


def test_training_writes_it_and_says_what_it_cost(trained):
  workdir, done = trained
  assert re.search(r'wrote .*report.html in \d+\.\d s', done.stderr)
  parsed = check_page((workdir / 'report.html').read_text())
  assert 'finished, step 4 of 4' in parsed.text
  assert 'mnist5k: 5,000 images of 28 x 28 x 1, 10 classes' in parsed.text
  assert workdir.name in parsed.text
  # Grids of steps 2 and 4, and hidden words for each chart.
  assert [i['alt'] for i in parsed.all('img')] == [
      f'Samples at step {step}, of the same seeds.' for step in (2, 4)
  ]
  assert any(
      'Loss by step. loss: from' in a.get('aria-label', '')
      for a in parsed.all('div')
  )
  assert 'Not scored yet' in parsed.text and 'from the beginning' in parsed.text
  assert 'tensorflow' in parsed.text


def test_a_last_step_that_was_not_logged(workdir):
  """As where train.log_every_steps does not divide train.num_steps."""
  path = workdir / 'metrics.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:3]))
  parsed = render(workdir)
  assert 'finished, step 4 of 4' in parsed.text
  assert parsed.all('img')[-1]['alt'].startswith('Samples at step 4,')


def test_the_config_can_be_made_from_the_command(trained, monkeypatch):
  """The report alone is enough, also without the workdir."""
  facts = facts_lib.read(str(trained[0]))
  overrides = facts_lib.overrides(facts.config)
  assert overrides['train.batch_size'] == [128, 8]
  assert 'seed' not in overrides
  ((_, command),) = [c for c in page._commands(facts) if c[0] == 'Train']
  # A shell joins the lines.
  words = shlex.split(command.replace('\\\n', ''))
  assert words[:3] == ['python', '-m', 'ddpm.main']
  argv = ['main', f'--config={ROOT}/configs/default.py', *words[4:]]
  monkeypatch.setattr(sys, 'argv', argv)  # Where config_flags looks, too.
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  values(argv)
  assert values.config.to_dict() == facts.config.to_dict()


def test_a_run_may_go_on_without_it(trained):
  """That none is written then, `test_main` says."""
  workdir = str(trained[0])
  config = facts_lib.read(workdir).config
  config.report = False
  assert not config_lib.continued(config, workdir).report


def test_a_report_that_fails_is_a_warning(workdir, monkeypatch, caplog):
  def fail(workdir):
    raise RuntimeError('no\nink')

  monkeypatch.setattr(facts_lib, 'read', fail)
  page.write_or_warn(str(workdir))
  (record,) = caplog.records
  assert record.levelname == 'WARNING'
  assert record.getMessage().endswith('report.html: no ink')


def test_the_program_draws(trained):
  workdir, _ = trained
  out = workdir / 'drawn <b>.html'
  done = run_fork('ddpm.report', f'--workdir={workdir}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  parsed = check_page(out.read_text())
  alts = ' '.join(image['alt'] for image in parsed.all('img'))
  for part in (
      'Animation: noise', 'Four rows', 'Three rows', 'nearest training image',
      '10 rows, one for each class',
  ):  # fmt: skip
    assert part in alts
  assert '5,000 training images' in parsed.text


def test_without_a_checkpoint_nothing_is_drawn(workdir):
  shutil.rmtree(workdir / 'checkpoints')
  out = workdir / 'other.html'
  done = run_fork('ddpm.report', f'--workdir={workdir}', f'--out={out}')
  assert done.returncode == 0 and 'nothing drawn: ' in done.stderr
  text = check_page(out.read_text()).text
  assert 'Nothing could be drawn' in text and 'has no checkpoints' in text


def test_what_is_missing_or_cut_is_said(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  rows[1]['loss'], rows[2]['loss'] = None, float('nan')
  lines = [json.dumps(row) for row in rows] + ['{"step": 5, "lo']
  (workdir / 'metrics.jsonl').write_text('\n'.join(lines))
  (workdir / 'data.json').write_text('[]')
  (workdir / 'samples' / 'step_00000002.png').write_bytes(b'no picture')
  (workdir / 'events.jsonl').unlink()
  text = render(workdir).text
  assert '1 line of metrics.jsonl; data.json' in text
  assert 'missing or not finite at step 2, 3' in ' '.join(text.split())
  assert 'step 2\n' not in text and 'No events.jsonl' in text
  for name in ('metrics.jsonl', 'data.json', 'grid.png'):
    (workdir / name).unlink()
  shutil.rmtree(workdir / 'samples')
  text = render(workdir).text
  assert 'Nothing is logged yet' in text and 'No grids yet' in text


def test_an_older_versions_workdir():
  text = render(OLD).text
  assert 'step 4 of' in text and 'No events.jsonl' in text


def test_scores_have_their_floor(workdir):
  rows = [
      {
          'fd_mnist@100': 100.0 / step,
          'kid_stderr_mnist@100': 0.1,
          'details': {
              'step': step, 'weights': 'ema:0.9', 'sampler': 'ddim',
              'steps': 20, 'eta': 0.5, 'data': 'mnist5k', 'split': 'train',
              'floor': {'fd_mnist@100': 1.25},
          },
      }
      for step in (4, 2)
  ]  # fmt: skip
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (workdir / 'evaluation.jsonl').write_text(lines)
  parsed = render(workdir)
  labels = [a.get('aria-label', '') for a in parsed.all('div')]
  (chart,) = [label for label in labels if 'fd_mnist@100 by step' in label]
  assert 'from 50 at step 2 to 25 at 4' in chart
  assert 'real images 1.25' in chart and 'eta 0.5' in chart
  # How sure a score is has a row, but no chart.
  assert not any(label.startswith('kid_stderr') for label in labels)
  assert 'kid_stderr_mnist@100' in parsed.text


def test_events_are_counted(workdir):
  path = workdir / 'events.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  start, end = [row for row in rows if row['event'] != 'warning']
  path.write_text('\n'.join(map(json.dumps, [
      start,
      start | {'step': 2},
      end | {'event': 'interrupted', 'message': 'by SIGTERM <1>'},
      *[start, end],
  ])))  # fmt: skip
  text = ' '.join(render(workdir).text.split())
  assert '1 of 3 starts recorded no end' in text
  assert 'resumed at step 2' in text and 'by SIGTERM <1>' in text
  assert 'Where the time went is known once' in text
  path.write_text(f'{json.dumps(start)}\n{json.dumps(end)}\n')
  text = ' '.join(render(workdir).text.split())
  assert 'compiling, drawing grids, saving' in text


def test_runs_side_by_side(workdir, tmp_path):
  other = shutil.copytree(workdir, tmp_path / 'other <b>')
  config = json.loads((other / 'config.json').read_text())
  config['optimizer']['learning_rate'] = 0.125
  config['diffusion']['loss'] = 'min_snr'
  (other / 'config.json').write_text(json.dumps(config))
  parsed = render(workdir, other)
  assert 'optimizer.learning_rate' in parsed.text and '0.125' in parsed.text
  assert 'may have different scales' in parsed.text
  (loss,) = [
      a['aria-label'] for a in parsed.all('div')
      if a.get('aria-label', '').count('other <b>: from') and 'Loss' in
      a['aria-label']
  ]  # fmt: skip
  assert f'{workdir}: from' in loss


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--workdir=nowhere'], 'nowhere has no config.json, expected'),
        (['--compare=nowhere'], 'nowhere has no config.json, expected'),
        (['--out=/dev/null/page.html'], '/dev/null/page.html cannot be'),
        (['--live', '--port=70000'], '--port=70000 cannot be used'),
    ],
)
def test_refuses(workdir, arguments, said):
  shutil.rmtree(workdir / 'checkpoints')  # Draws nothing.
  done = run_fork('ddpm.report', f'--workdir={workdir}', *arguments)
  assert said in error_line(done, after_log=True)


def test_live_follows_the_run(workdir):
  process = start_program('ddpm.report', '--live', f'--workdir={workdir}')
  try:
    address = process.stdout.readline().split()[0]
    assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', address)

    def get(path='', **headers):
      request = urllib.request.Request(address + path, headers=headers)
      return urllib.request.urlopen(request, timeout=60)

    answer = get()
    tag = answer.headers['ETag']
    assert 'Live, at step 4' in check_page(answer.read().decode()).text
    for path, code in (('', 304), ('etc/passwd', 404)):
      with pytest.raises(urllib.error.HTTPError) as error:
        get(path, **{'If-None-Match': tag})
      assert error.value.code == code
    with open(workdir / 'metrics.jsonl', 'a') as f:
      f.write('{"step": 5, "loss": 0.5}\n')
    answer = get(**{'If-None-Match': tag})
    assert 'Live, at step 5' in answer.read().decode()
    process.terminate()
    assert process.wait(timeout=60) == 0
  finally:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('size', [32, 56, 256])
def test_a_page_of_noise_is_small_enough(tmp_path, size):
  """PNG cannot compress it."""
  workdir = shutil.copytree(OLD, tmp_path / 'run')
  noise = np.random.default_rng(0).integers(
      0, 256, [80, size, size, 3], np.uint8
  )
  for step in range(30):
    path = workdir / 'samples' / f'step_{step:08d}.png'
    png.write_png(str(path), png.grid(noise[:64]))
  films = np.stack([noise[:16]] * 26, axis=1)
  drawn = drawings.Drawings(
      step=4, weights='ema', sampler='ddim', between_sampler='ddim',
      frames=drawings._frames(films), process=drawings._process(films),
      between=png.grid(noise[:24], columns=8),
      nearest=png.grid(noise[:16], columns=8), distances=np.zeros(8),
      searched=9, why_not='', classes=png.grid(noise, columns=8),
      num_classes=10,
  )  # fmt: skip
  alts = [image['alt'] for image in render(workdir, drawings=drawn).all('img')]
  kept = [alt for alt in alts if alt.startswith('Samples at step')]
  assert len(kept) > 1 and 'step 0,' in kept[0] and 'step 29,' in kept[-1]


@pytest.mark.parametrize('number', [0, 1, 5, 20_000])
def test_a_thinned_curve_keeps_its_extremes(number):
  y = np.random.default_rng(0).normal(size=number)
  if number > 100:
    y[7_000], y[9_000] = 50.0, np.nan
  kept = charts.thin(y, 1000)
  assert len(kept) <= 2000 and (np.diff(kept) > 0).all()
  if number > 100:
    assert {0, 7_000, 9_000, number - 1} <= set(kept)
  else:
    assert len(kept) == number


def test_a_curve_with_gaps_has_a_title_for_each_point():
  y = np.array([3.0, np.nan, 1.0, 0.0])
  label = '$x$ <é>'
  curves = [charts.Curve(label, np.arange(4), y, floor=0.5)]
  for logarithmic in (False, True):
    chart = charts.Chart('A', 'step', curves, logarithmic)
    svg = chart.svg('a')
    positive = 2 if logarithmic else 3
    assert svg.count('step ') >= positive
    assert svg.count('</title>') == positive
    assert '$x$ &lt;é&gt;: 3' in svg
  assert 'lowest 0 at 3; real images 0.5' in chart.description
  assert [values for _, values in chart.table] == [['3'], [''], ['1'], ['0']]


class Source:
  """Five images."""

  def __init__(self, images):
    self._images = images

  def __len__(self):
    return len(self._images)

  def read(self, start, stop):
    return self._images[start:stop]


@pytest.mark.parametrize('size', [8, 64])
def test_nearest_images_are_found(size, monkeypatch):
  monkeypatch.setattr(drawings, '_BLOCK', 2)
  images = np.random.default_rng(0).integers(
      0, 256, [5, size, size, 3], np.uint8
  )
  samples = images[[4, 1]].copy()
  samples[0] ^= 1
  found, distances = drawings.nearest(samples, Source(images), 5)
  np.testing.assert_array_equal(found, images[[4, 1]])
  assert distances[1] == 0 < distances[0] <= 1 / 255 + 1e-6
