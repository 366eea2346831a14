"""Looks at image data before it is trained on.

  python -m ddpm.data check --data=folder:PATH

decodes all images in a folder, and prints how many there are, their sizes,
modes and classes, which ones are broken, which ones are the same, and what a
training would make of them. It writes a contact sheet, on which what the crop
cuts off is dark. Exit code 2 if an image is broken, 0 otherwise.
"""

from absl import flags
from etils import epy

from ddpm.runtime import program
from ddpm.runtime.errors import UserError

# Loaded in main.
with epy.lazy_imports():
  from ddpm.data import check

FLAGS = flags.FLAGS


def define_flags():
  flags.DEFINE_string('data', None, 'folder:PATH.')
  flags.DEFINE_integer(
      'image_size', None, 'Size to train at; by default chosen by the images.'
  )
  flags.DEFINE_enum(
      'labels', 'folders', ['folders', 'prefix', 'none'],
      'Classes: sub-folders, or file names up to the first underscore.',
  )  # fmt: skip
  flags.DEFINE_enum(
      'resize', 'center_crop', ['center_crop', 'stretch', 'pad'],
      'How images get to the size.',
  )  # fmt: skip
  flags.DEFINE_string('sheet', 'check.png', 'The contact sheet to write.')


def check_flags():
  """Raises UserError for wrong flags."""
  if not (FLAGS.data or '').removeprefix('folder:'):
    raise UserError('--data is missing: pass folder:PATH')
  if not FLAGS.data.startswith('folder:'):
    raise UserError(f'--data is {FLAGS.data!r}, expected folder:PATH')
  if FLAGS.image_size is not None and FLAGS.image_size < 1:
    raise UserError(
        f'--image_size is {FLAGS.image_size}, expected at least 1'
    )


def main(command):
  del command  # check is the only one.
  report = check.check(
      FLAGS.data.removeprefix('folder:'),
      image_size=FLAGS.image_size,
      labels=FLAGS.labels,
      rule=FLAGS.resize,
      sheet=FLAGS.sheet,
  )
  print('\n'.join(report.lines))
  return 2 if report.broken else 0


if __name__ == '__main__':
  program.start(main, define_flags, check_flags, commands=('check',))
