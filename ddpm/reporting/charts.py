"""Line charts as SVG for a page: matplotlib draws, each point gets a title.

A browser shows an element's <title> when the pointer rests on it, without a
script. Colors are CSS variables and currentColor, so that the page's theme
decides on them.
"""

import dataclasses
import io
import itertools
import math
import re
import xml.etree.ElementTree as ET

from etils import epy
import numpy as np

# Takes most of a second, which training does not wait for.
with epy.lazy_imports():
  import matplotlib
  from matplotlib import figure as figure_lib
  from matplotlib import ticker

# Points of a curve that are drawn, that have a title, and that are in a table.
_DRAWN, _TITLED, _TABLED = 1000, 100, 12

# Curves differ in color and style: on paper, and for all eyes.
COLORS = 4
STYLES = ('solid', 'dashed', 'dotted', 'dashdot')

_SVG = 'http://www.w3.org/2000/svg'
_XLINK = 'http://www.w3.org/1999/xlink'

# What matplotlib takes as colors, and what the page gets.
_INK = '#010203'
_PAINTS = {f'#0a0b0{i}': f'var(--curve{i})' for i in range(COLORS)}
_PAINTS[_INK] = 'currentColor'


@dataclasses.dataclass(frozen=True)
class Curve:
  """One curve of a chart.

  Attributes:
    label: for the legend; any text.
    x: numbers [N], in order.
    y: float64 [N]; NaN for a gap.
    floor: a value that is drawn as a horizontal line; None for none.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  floor: float | None = None


@dataclasses.dataclass(frozen=True)
class Chart:
  """A chart for a page.

  Attributes:
    title: what is drawn.
    x_name: of the horizontal axis.
    curves: list of `Curve`.
    logarithmic: whether the vertical axis is.
  """

  title: str
  x_name: str
  curves: list
  logarithmic: bool = False

  @property
  def description(self):
    """The chart in words, for those who do not see it."""
    parts = [_in_words(curve, self.x_name) for curve in self.curves]
    return f'{self.title} by {self.x_name}. {" ".join(parts)}'

  @property
  def styles(self):
    """(label, color number, line style) of each curve."""
    labels = [curve.label for curve in self.curves]
    return list(zip(labels, itertools.cycle(range(COLORS)), _styles()))

  @property
  def table(self):
    """Rows (x, [value or '' per curve]) at some of the first curve's x."""
    x = self.curves[0].x
    return [
        (f'{at:,}', [_value_at(curve, at) for curve in self.curves])
        for at in x[_evenly(len(x), _TABLED)]
    ]

  def svg(self, prefix):
    """The picture as an <svg> element.

    Args:
      prefix: of the ids in it, which differs from those of the page's others.
    """
    style = {
        'svg.fonttype': 'none',
        'svg.hashsalt': prefix,
        'font.size': 11,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'lines.linewidth': 1.6,
        'lines.markersize': 5,
        **dict.fromkeys(
            ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color',
             'ytick.color', 'grid.color'), _INK,
        ),
    }  # fmt: skip
    with matplotlib.rc_context(style):
      file = io.BytesIO()
      titles = self._draw(file)
    return _for_page(file.getvalue(), prefix, titles)

  def _draw(self, file):
    """Writes matplotlib's SVG; returns the titles of each curve's points."""
    figure = figure_lib.Figure(figsize=(5.6, 3.0), layout='constrained')
    axes = figure.subplots()
    titles = {}
    for i, (curve, (_, color, style)) in enumerate(
        zip(self.curves, self.styles)
    ):
      paint = list(_PAINTS)[color]
      # A logarithm has a gap where there is none.
      gaps = self.logarithmic & (curve.y <= 0)
      x, y = curve.x, np.where(gaps, np.nan, curve.y)
      drawn = thin(y, _DRAWN)
      axes.plot(x[drawn], y[drawn], color=paint, linestyle=style)
      if curve.floor is not None:
        axes.axhline(curve.floor, color=paint, linestyle=(0, (1, 3)))
      finite = np.flatnonzero(np.isfinite(y))
      finite = finite[_evenly(len(finite), _TITLED)]
      axes.plot(x[finite], y[finite], 'o', color=paint, gid=f'points{i}')
      titles[f'points{i}'] = [
          f'{self.x_name} {curve.x[k]:,}, {curve.label}: {curve.y[k]:.4g}'
          for k in finite
      ]
    if self.logarithmic:
      axes.set_yscale('log')
      axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2.0, 5.0)))
      axes.yaxis.set_major_formatter('{x:g}')
      axes.yaxis.set_minor_formatter('{x:g}')
    axes.set_xlabel(self.x_name)
    axes.grid(alpha=0.15)
    figure.savefig(file, format='svg', transparent=True)
    return titles


def thin(y, most):
  """Indices of a curve's points that show what all of them would.

  Args:
    y: float64 [N]; NaN for a gap.
    most: indices to return, about.

  Returns:
    Sorted indices: of each stretch the lowest and highest value, and a gap.
  """
  if len(y) <= most:
    return np.arange(len(y))
  kept = {0, len(y) - 1}
  for part in np.array_split(np.arange(len(y)), most // 2):
    gaps = ~np.isfinite(y[part])
    kept.add(part[np.argmin(np.where(gaps, np.inf, y[part]))])
    kept.add(part[np.argmax(np.where(gaps, -np.inf, y[part]))])
    kept.update(part[gaps][:1])
  return np.array(sorted(kept))


def _styles():
  """Line styles: another one where the colors begin again."""
  rounds = itertools.count()
  return (STYLES[(i + i // COLORS) % len(STYLES)] for i in rounds)


def _evenly(number, most):
  """At most so many of the indices below a number, with both ends."""
  return np.unique(np.linspace(0, number - 1, min(number, most)).astype(int))


def _value_at(curve, x):
  found = np.flatnonzero(curve.x == x)
  value = curve.y[found[0]] if len(found) else math.nan
  return f'{value:.4g}' if math.isfinite(value) else ''


def _in_words(curve, x_name):
  finite = np.isfinite(curve.y)
  if not finite.any():
    return f'{curve.label}: no values.'
  x, y = curve.x[finite], curve.y[finite]
  low = y.argmin()
  text = (
      f'{curve.label}: from {y[0]:.4g} at {x_name} {x[0]:,} to {y[-1]:.4g} at'
      f' {x[-1]:,}, lowest {y[low]:.4g} at {x[low]:,}'
  )
  if curve.floor is not None:
    text += f'; real images {curve.floor:.4g}'
  return text + '.'


def _for_page(svg, prefix, titles):
  """Matplotlib's SVG as an element that may stand in a page with others."""
  ET.register_namespace('', _SVG)
  ET.register_namespace('xlink', _XLINK)
  root = ET.fromstring(svg)
  for unwanted in ('metadata', 'style'):
    for parent in root.iter():
      for child in parent.findall(f'{{{_SVG}}}{unwanted}'):
        parent.remove(child)
  for element in root.iter():
    if points := titles.get(element.get('id')):
      element.set('class', 'points' if len(points) > 40 else 'points shown')
      _add_titles(element.iter(f'{{{_SVG}}}use'), points)
    for name, value in element.attrib.items():
      element.set(name, _attribute(name, value, prefix))
  del root.attrib['width'], root.attrib['height']
  root.set('aria-hidden', 'true')  # The page describes it in words.
  return ET.tostring(root, encoding='unicode')


def _add_titles(elements, titles):
  for element, text in zip(elements, titles, strict=True):
    ET.SubElement(element, f'{{{_SVG}}}title').text = text


def _attribute(name, value, prefix):
  """An attribute with the page's ids and colors."""
  if name == 'id':
    return f'{prefix}-{value}'
  if name == f'{{{_XLINK}}}href':
    return f'#{prefix}-{value[1:]}'
  value = re.sub(r'url\(#', f'url(#{prefix}-', value)
  for color, paint in _PAINTS.items():
    value = value.replace(color, paint)
  return value
