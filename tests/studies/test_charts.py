"""Charts: what is drawn is what was measured, and zero is seen."""

import numpy as np
import pictures
import pytest

from tpv_jax.core.figures import Sheet
from tpv_jax.studies.report import charts
from tpv_jax.studies.report.charts import Score


def test_error_bars_are_sample_deviations_that_end_at_0_and_100():
  score = Score.of([0.7, 0.8, 0.9])
  assert score.mean == pytest.approx(80)
  assert score.error == pytest.approx((10, 10))
  assert Score.of([0.9, 1.0, 1.0]).error == pytest.approx((5.7735, 10 / 3))
  assert Score.of([0.0, 0.0, 0.3]).error == pytest.approx((10, 17.3205))
  assert Score.of([0.5]).error == (0.0, 0.0)


def test_bars_have_the_heights_of_the_means_and_a_dot_for_each_initial_prompt():
  values = [[0.1, 0.3], [0.5, 1.0], [0.0, 0.0]]
  sheet = charts.bars(["a", "b", "c"], {"own": list(map(Score.of, values))}, seeds=2)
  (axes,) = pictures.check(sheet)
  heights = [bar.get_height() for bar in axes.containers[0]]
  assert heights == pytest.approx([20, 75, 0])
  (dots,) = axes.collections[-1:]
  assert sorted(dots.get_offsets()[:, 1]) == pytest.approx([0, 0, 10, 30, 50, 100])
  assert "n = 2 initial prompts" in axes.get_ylabel()


def test_bars_of_zero_are_seen():
  series = {"first": [Score.of([0.0])] * 3, "second": [Score.of([0.0])] * 3}
  sheet = charts.bars(["a", "b", "c"], series, seeds=2)
  figure = sheet.arrange()
  for colour in ("C0", "C1"):
    before = pictures.colours(figure, colour)
    figure.axes[0].get_legend().set_visible(False)
    # Three lines of 0.16 inches, of which two rows of dots have the colour itself.
    assert pictures.colours(figure, colour) >= 3 * 2 * 15
    assert before > pictures.colours(figure, colour)
    figure.axes[0].get_legend().set_visible(True)


def test_many_bars_take_several_rows_of_the_same_width():
  names = [str(number) for number in range(20)]
  series = {str(n): [Score.of([0.1, 0.2])] * 20 for n in range(6)}
  panels = pictures.check(charts.bars(names, series, seeds=2))
  assert len(panels) == 3
  written = [label.get_text() for axes in panels for label in axes.get_xticklabels()]
  assert written == names
  assert all(
    axes.get_window_extent().width <= charts.WIDEST * 120 + 1 for axes in panels
  )


def test_lines_go_through_the_means_beside_each_other():
  series = {
    "one": [Score.of([0.0, 0.2]), Score.of([0.4, 0.6])],
    "two": [Score.of([1.0, 1.0]), Score.of([0.9, 1.0])],
  }
  sheet = charts.lines({"a": series, "b": series}, ["0", "5"], "examples", seeds=2)
  for axes in pictures.check(sheet):
    first, second = axes.lines[0], axes.lines[3]
    assert first.get_ydata() == pytest.approx([10, 50])
    assert second.get_ydata() == pytest.approx([100, 95])
    assert (first.get_xdata() < second.get_xdata()).all()


def test_a_cell_shows_its_value_and_none_where_there_is_none():
  sheet = Sheet()
  values = np.asarray([[1.0, np.nan], [49.6, 100.0]])
  names = ["a", "b"]
  charts.matrix(sheet, values, names, names, (0, 100), "viridis", "t", text="{:.0f}")
  (axes,) = pictures.check(sheet)
  written = {text.get_position(): text.get_text() for text in axes.texts}
  assert written == {(0, 0): "1", (0, 1): "50", (1, 1): "100"}
