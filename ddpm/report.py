"""Writes the report of a run as one HTML page, or serves it.

  python -m ddpm.report --workdir=runs/mnist5k
  python -m ddpm.report --workdir=runs/mnist5k --compare=runs/a,runs/b
  python -m ddpm.report --workdir=runs/mnist5k --live
"""

import os

from absl import flags
from absl import logging
from etils import epy

from ddpm.runtime import environment
from ddpm.runtime import program
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  from ddpm.reporting import drawings
  from ddpm.reporting import facts as facts_lib
  from ddpm.reporting import live
  from ddpm.reporting import page

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string('workdir', None, 'Folder of the run to report.')
  flags.DEFINE_list(
      'compare', [], 'Folders of runs to show beside it: A,B.'
  )
  flags.DEFINE_string(
      'out', None, 'File for the page; by default WORKDIR/report.html.'
  )
  flags.DEFINE_bool(
      'live',
      False,
      'Serve the page on 127.0.0.1 instead, and refresh it as the run goes on.'
      ' Draws nothing.',
  )
  flags.DEFINE_integer(
      'port', 0, 'Port of --live; 0 for any that is free.', lower_bound=0
  )


def check_flags():
  """Raises UserError if flags are missing or do not fit together."""
  if not FLAGS.workdir:
    raise UserError('--workdir is missing: pass the folder of a run')
  if FLAGS.live and FLAGS.out:
    raise UserError('--live writes no file: leave out --out, or --live')
  if FLAGS['port'].present and not FLAGS.live:
    raise UserError('--port is for --live, which is missing')


def main():
  if FLAGS.live:
    _serve()
    return
  run, others = _read()
  drawn, why_not = None, ''
  try:
    drawn = drawings.draw(FLAGS.workdir)
  except UserError as e:
    why_not = str(e)
    logging.warning('nothing drawn: %s', why_not)
  path = FLAGS.out or os.path.join(FLAGS.workdir, 'report.html')
  page.write(path, run, others=others, drawings=drawn, why_not_drawn=why_not)
  logging.info('wrote %s', path)


def _read():
  """`facts.Facts` of the run and of those to compare it with."""
  run, *others = [
      facts_lib.read(workdir) for workdir in (FLAGS.workdir, *FLAGS.compare)
  ]
  return run, others


def _serve():
  def render():
    run, others = _read()
    return page.render(run, others=others, live=True)

  def stamp():
    folders = (FLAGS.workdir, *FLAGS.compare)
    return ' '.join(facts_lib.stamp(workdir) for workdir in folders)

  server = live.Server(FLAGS.port, stamp=stamp, render=render)
  server.page()  # What is wrong with the workdir is said here.
  # Ctrl-C is how this ends.
  environment.on_signals(lambda *_: os._exit(0))
  print(f'{server.address} (Ctrl-C ends it)', flush=True)
  server.serve_forever()


if __name__ == '__main__':
  program.start(main, define_flags, check_flags)
