"""Pictures: text takes no room from panels, and names are broken where they may be."""

import pictures
import pytest

from tpv_jax.core.figures import SIZE, Sheet, wrapped


def test_names_are_broken_after_the_signs_that_join_their_words():
  text = "super_glue_multirc_turned_beside_question"
  assert wrapped(text, 1.0).split("\n") == [
    "super_glue_",
    "multirc_turned_",
    "beside_question",
  ]
  assert wrapped("a b", 9.0) == "a b"


@pytest.mark.parametrize(
  "text", ["W" * 60, "a-" * 40, "ein Wort / zwei", "x", "é" * 60]
)
@pytest.mark.parametrize("width", [0.3, 1.0])
def test_no_line_is_wider_than_it_may_be_and_nothing_is_lost(text, width):
  found = wrapped(text, width)
  assert found.replace("\n", "").replace(" ", "") == text.replace(" ", "")
  sheet = Sheet()
  renderer = sheet.figure.canvas.get_renderer()
  for line in found.split("\n"):
    box = sheet.figure.text(0, 0, line, fontsize=SIZE).get_window_extent(renderer)
    assert box.width <= width * sheet.figure.dpi or len(line) == 1


def test_lines_are_wider_where_so_many_would_not_fit():
  text = "super_glue_multirc_turned_beside_question"
  assert len(wrapped(text, 0.5).split("\n")) > 2
  assert len(wrapped(text, 0.5, lines=2).split("\n")) <= 2


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_panels_have_the_size_that_was_asked_for_whatever_is_written(columns):
  sheet = Sheet(columns, title="all of them, " * 20)
  sizes = [(2.5, 3.0), (3.0, 2.5), (4.0, 2.5), (2.5, 2.5), (2.5, 4.0)]
  for number, (width, height) in enumerate(sizes):
    axes = sheet.panel(width, height, "a title that is long " * number)
    axes.set_yticks([0, 1], ["a name that is long " * number, ""])
    axes.set_xlabel("one\ntwo\nthree")
  panels = pictures.check(sheet)
  for axes, (width, height) in zip(panels, sizes, strict=True):
    box = axes.get_window_extent()
    assert box.width / sheet.figure.dpi == pytest.approx(width)
    assert box.height / sheet.figure.dpi == pytest.approx(height)
