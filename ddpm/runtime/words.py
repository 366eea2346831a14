"""Quantities in words, for messages."""


def duration(seconds):
  """A time: '40 s', '12 min', '1 h 13 min'."""
  if round(seconds) < 60:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'


def dimensions(shape):
  """A shape or size: '28 x 28 x 1'."""
  return ' x '.join(map(str, shape))


def size(num_bytes):
  """A number of bytes: '740 B', '12.1 MB', '3.4 GB'."""
  for unit in ('B', 'kB', 'MB', 'GB'):
    if num_bytes < 999.5:
      return f'{num_bytes:.0f} B' if unit == 'B' else f'{num_bytes:.1f} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.1f} TB'


def shortened(text):
  """A text in quotes, of which a message shows only the beginning."""
  return repr(text if len(text) <= 60 else f'{text[:57]}...')
