"""Looks at image data, and prepares it for fast reading.

  python -m ddpm.data check --data=folder:PATH

decodes all images in a folder, and prints how many there are, their sizes,
modes and classes, which ones are broken, which ones are the same, and what a
training would make of them. It writes a contact sheet, on which what the crop
cuts off is dark. Exit code 2 if an image is broken, 0 otherwise.

  python -m ddpm.data prepare --data=folder:PATH --image_size=64 --out=DIR

resizes all images once, and writes them as ArrayRecord files, to train on with
--config.data.name=prepared:DIR. For sets that do not fit in memory, or that
other machines read. If it is killed, the same command goes on. On a cluster of
Apache Beam: --beam_runner=FlinkRunner, for example.
"""

import importlib.util

from absl import flags
from etils import epy

from ddpm.runtime import program
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  from ddpm.data import beam
  from ddpm.data import check
  from ddpm.data import prepare

FLAGS = flags.FLAGS

# What each command takes as --data.
_DATA = {
    'check': ('folder:PATH',),
    'prepare': ('folder:PATH', 'tfds:NAME', 'prepared:PATH'),
}

# Flags that are settings of `prepare.Options`.
_SETTINGS = (
    'split', 'resize', 'labels', 'on_error', 'data_dir', 'image_key',
    'label_key', 'encoding',
)  # fmt: skip


def define_flags():
  flags.DEFINE_string(
      'data', None, 'folder:PATH; to prepare also tfds:NAME or prepared:PATH.'
  )
  flags.DEFINE_list(
      'image_size', None,
      'Size to train at, in pixels: one number, or height,width. By default'
      ' chosen by the images.',
  )  # fmt: skip
  flags.DEFINE_enum(
      'labels', 'folders', ['folders', 'prefix', 'none'],
      'Classes: sub-folders, or file names up to the first underscore.',
  )  # fmt: skip
  flags.DEFINE_enum(
      'resize', 'center_crop', ['center_crop', 'stretch', 'pad'],
      'How images get to the size.',
  )  # fmt: skip
  flags.DEFINE_string('sheet', 'check.png', 'check: contact sheet to write.')
  flags.DEFINE_string('out', None, 'prepare: folder to write to.')
  flags.DEFINE_enum(
      'encoding', 'png', ['png', 'jpeg'],
      'prepare: png is exact, jpeg several times smaller.',
  )  # fmt: skip
  flags.DEFINE_integer(
      'image_channels', None,
      'prepare: 1 (grey), 3 (RGB) or 4 (RGBA), for a folder. By default chosen'
      ' by its images.',
  )  # fmt: skip
  flags.DEFINE_enum(
      'on_error', 'stop', ['stop', 'skip'],
      "prepare: what to do at a folder's broken images.",
  )  # fmt: skip
  flags.DEFINE_string('split', 'train', 'prepare: of a data set of TFDS.')
  flags.DEFINE_string(
      'data_dir', '~/tensorflow_datasets', 'prepare: folder of TFDS.'
  )
  flags.DEFINE_string('image_key', 'image', 'prepare: feature of TFDS.')
  flags.DEFINE_string('label_key', 'label', 'prepare: feature of TFDS.')
  flags.DEFINE_string(
      'beam_runner', None,
      'prepare: run by Apache Beam: DirectRunner, DataflowRunner, SparkRunner,'
      ' FlinkRunner.',
  )  # fmt: skip
  flags.DEFINE_list(
      'beam_pipeline_options', [],
      "prepare: Beam's own options, as in"
      ' direct_num_workers=8,direct_running_mode=multi_processing.',
  )  # fmt: skip


def check_flags(command):
  """Raises UserError for wrong flags."""
  expected = _DATA[command]
  scheme, _, rest = (FLAGS.data or '').partition(':')
  if not FLAGS.data:
    raise UserError(f'--data is missing: pass {" or ".join(expected)}')
  if scheme not in [kind.partition(':')[0] for kind in expected] or not rest:
    raise UserError(
        f'--data is {FLAGS.data!r}, expected {" or ".join(expected)}'
    )
  if _image_size() and min(_image_size()) < 1:
    raise UserError(
        f'--image_size is {",".join(FLAGS.image_size)}, expected at least 1'
    )
  if command == 'prepare' and not FLAGS.out:
    raise UserError('--out is missing: pass the folder to write to')
  if FLAGS.beam_pipeline_options and not FLAGS.beam_runner:
    raise UserError(
        '--beam_pipeline_options needs --beam_runner, DirectRunner for example'
    )
  if FLAGS.beam_runner and not importlib.util.find_spec('apache_beam'):
    raise UserError(
        "--beam_runner needs Apache Beam: pip install -e '.[beam]'"
    )


def _image_size():
  """--image_size as (height, width), None if it was not given."""
  parts = FLAGS.image_size
  if parts is None:
    return None
  try:
    numbers = [int(part) for part in parts]
  except ValueError:
    numbers = []
  if len(numbers) not in (1, 2):
    raise UserError(
        f'--image_size is {",".join(parts)!r}, expected a number of pixels, or'
        ' height,width'
    )
  return numbers[0], numbers[-1]


def main(command):
  return {'check': _check, 'prepare': _prepare}[command]()


def _check():
  report = check.check(
      FLAGS.data.removeprefix('folder:'),
      image_size=_image_size(),
      labels=FLAGS.labels,
      rule=FLAGS.resize,
      sheet=FLAGS.sheet,
  )
  print('\n'.join(report.lines))
  return 2 if report.broken else 0


def _prepare():
  run = None
  if FLAGS.beam_runner:
    run = beam.Beam(FLAGS.beam_runner, FLAGS.beam_pipeline_options)
  lines = prepare.prepare(
      FLAGS.out,
      run=run,
      data=FLAGS.data,
      image_size=_image_size(),
      channels=FLAGS.image_channels,
      **{name: FLAGS[name].value for name in _SETTINGS},
  )
  print('\n'.join(lines))


if __name__ == '__main__':
  program.start(main, define_flags, check_flags, commands=tuple(_DATA))
