"""Image grids and PNG files."""

import numpy as np
import tensorflow as tf

from ddpm.runtime import files


def grid(images, *, columns=None):
  """Arranges images in a grid, row by row, 2 pixels apart.

  Args:
    images: uint8 [N, H, W, C].
    columns: images per row; None for a square grid.

  Returns:
    uint8 [rows * (H + 2) + 2, columns * (W + 2) + 2, C].
  """
  n, h, w, c = images.shape
  columns = columns or int(np.ceil(np.sqrt(n)))
  rows = -(-n // columns)
  cells = np.zeros([rows * columns, h + 2, w + 2, c], np.uint8)
  cells[:n, 2:, 2:] = images
  cells = cells.reshape(rows, columns, h + 2, w + 2, c)
  picture = cells.swapaxes(1, 2).reshape(rows * (h + 2), columns * (w + 2), c)
  return np.pad(picture, [(0, 2), (0, 2), (0, 0)])


def write_png(path, image):
  """Writes an image, uint8 [H, W, C], atomically."""
  files.write_file(path, tf.io.encode_png(image).numpy())
