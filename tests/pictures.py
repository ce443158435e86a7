"""Whether a picture can be read: what lies where in it, as rendered."""

import matplotlib.axes
import matplotlib.container
import matplotlib.text
import numpy as np

TEXT = matplotlib.text.Text


def check(sheet, least=(2.3, 2.3)):
  """Asserts that a sheet's picture is right, and returns its panels.

  No text outside the figure or over another one, no panel or legend over another, no bars
  over each other, no error bar above 100, and no panel smaller than `least` inches.
  """
  figure = sheet.arrange()
  renderer = figure.canvas.get_renderer()
  figure.draw_without_rendering()
  panels = figure.axes
  dpi, whole = figure.dpi, figure.bbox
  hidden = set(_outside(figure))
  named = [
    (one.get_text(), one.get_window_extent(renderer))
    for one in figure.findobj(TEXT)
    if one.get_text() and one.get_visible() and one not in hidden
  ]
  for text, box in named:
    inside = whole.x0 <= box.x0 and box.x1 <= whole.x1
    inside = inside and whole.y0 <= box.y0 and box.y1 <= whole.y1
    assert inside, f"{text!r} leaves the picture: {box} of {whole}"
  _assert_apart(named)
  own = [("panel", axes.get_window_extent(renderer)) for axes in panels]
  _assert_apart(own)
  for _, box in own:
    assert box.width >= least[0] * dpi, box
    assert box.height >= least[1] * dpi, box
  for axes in panels:
    if legend := axes.get_legend():
      legend_box = legend.get_window_extent(renderer)
      _assert_apart([("legend", legend_box), *own])
    containers = axes.containers
    bars = [
      bar.get_window_extent(renderer)
      for container in containers
      if isinstance(container, matplotlib.container.BarContainer)
      for bar in container
    ]
    _assert_apart([("bar", box) for box in bars])
    assert all(box.width >= 0.1 * dpi for box in bars)
    for container in containers:
      if isinstance(container, matplotlib.container.ErrorbarContainer):
        for lines in container.lines[2]:
          heights = np.concatenate([part[:, 1] for part in lines.get_segments()])
          assert heights.min() >= 0
          assert heights.max() <= 100
  return panels


def colours(figure, colour):
  """Returns how many pixels of a figure have a colour."""
  import matplotlib.colors

  figure.canvas.draw()
  wanted = np.round(255 * np.asarray(matplotlib.colors.to_rgb(colour)))
  pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
  return int((np.abs(pixels - wanted) <= 1).all(axis=-1).sum())


def _outside(figure):
  """Yields the labels of ticks outside of their axes, which are not drawn."""
  for axes in figure.findobj(matplotlib.axes.Axes):
    for axis in (axes.xaxis, axes.yaxis):
      low, high = sorted(axis.get_view_interval())
      for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
          yield from (tick.label1, tick.label2)


def _assert_apart(named):
  """Asserts that no two of the boxes overlap, by more than a fraction of a pixel."""
  if len(named) < 2:
    return
  boxes = np.asarray([box.extents for _, box in named])
  low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
  high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
  over = np.triu((high - low).min(axis=-1) > 0.5, k=1)
  pairs = [(named[i], named[j]) for i, j in np.argwhere(over)]
  assert not pairs, f"overlap: {pairs[:3]}"
