"""The report in Chromium, of playwright or of the system."""

import json
import shutil
import threading

import numpy as np
import pytest
from support import ROOT

from ddpm.reporting import facts as facts_lib
from ddpm.reporting import live
from ddpm.reporting import page as page_lib
from ddpm.runtime import png

playwright = pytest.importorskip(
    'playwright.sync_api', reason="needs the extra 'browser'"
)


@pytest.fixture(scope='module')
def browser():
  with playwright.sync_playwright() as p:
    try:
      browser = p.chromium.launch(
          executable_path=shutil.which('chromium'), args=['--no-sandbox']
      )
    except playwright.Error as e:
      pytest.skip(f'no Chromium: playwright install chromium ({e})')
    yield browser
    browser.close()


@pytest.fixture
def workdir(tmp_path):
  workdir = shutil.copytree(
      ROOT / 'tests' / 'oracles' / 'workdir_v1', tmp_path / 'a <b> [1]'
  )
  images = np.random.default_rng(0).integers(0, 256, [9, 8, 8, 3], np.uint8)
  for step in (2, 4):
    path = str(workdir / 'samples' / f'step_{step:08d}.png')
    png.write_png(path, png.grid(images))
  return workdir


def opened(browser, address, **kwargs):
  """A page, and the list of what it complains of or asks others for."""
  page = browser.new_page(**kwargs)
  faults = []
  page.on('console', lambda message: faults.append(message.text))
  page.on('pageerror', lambda error: faults.append(str(error)))

  def check(request):
    if not request.url.startswith(('data:', address)):
      faults.append(request.url)

  page.on('request', check)
  page.goto(address)
  return page, faults


@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('width', [360, 1400])
def test_it_fits_loads_nothing_and_reacts(browser, workdir, width, theme):
  path = workdir / 'report.html'
  page_lib.write(str(path), facts_lib.read(str(workdir)))
  page, faults = opened(
      browser, path.as_uri(), color_scheme=theme,
      viewport={'width': width, 'height': 800},
  )  # fmt: skip
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  grids = page.locator('.steps li')
  assert [grids.nth(i).is_visible() for i in (0, 1)] == [False, True]
  page.get_by_label('Training step').press('ArrowLeft')
  assert [grids.nth(i).is_visible() for i in (0, 1)] == [True, False]
  page.locator('.chart svg').first.hover()
  reading = page.locator('.reading').first.text_content()
  assert reading.startswith('step ') and 'loss: ' in reading
  assert not faults


def test_without_scripts_all_of_it_is_there(browser, workdir):
  path = workdir / 'report.html'
  page_lib.write(str(path), facts_lib.read(str(workdir)))
  page, faults = opened(browser, path.as_uri(), java_script_enabled=False)
  assert page.locator('.steps li').nth(0).is_visible()
  assert page.get_by_text('Make it again').is_visible()
  assert not faults


def test_a_live_page_keeps_what_its_reader_did(browser, workdir):
  server = live.Server(
      0,
      stamp=lambda: facts_lib.stamp(str(workdir)),
      render=lambda: page_lib.render(
          facts_lib.read(str(workdir)), live=True
      ),
  )
  threading.Thread(target=server.serve_forever, daemon=True).start()
  page, faults = opened(browser, server.address)
  page.get_by_text('All settings', exact=True).click()
  page.get_by_label('Training step').press('ArrowLeft')
  with open(workdir / 'metrics.jsonl', 'a') as f:
    f.write(json.dumps({'step': 5, 'loss': 0.5}) + '\n')
  page.get_by_text('Live, at step 5').wait_for()
  assert page.get_by_text('ema.rampup_ratio').is_visible()
  assert page.locator('.steps li').nth(0).is_visible()
  assert not faults
  server.shutdown()
  server.server_close()
