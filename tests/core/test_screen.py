"""In a log a bar is a few whole lines, and a table cuts no name."""

import io
import sys

from rich.table import Table

from tpv_jax.core import screen


def test_a_bar_in_a_log_is_a_few_lines(monkeypatch):
  log = io.StringIO()
  monkeypatch.setattr(sys, "stderr", log)
  with screen.Bar(total=1000, desc="steps") as bar:
    for _ in range(1000):
      bar.update(1)
      bar.set_postfix({"loss": "0.1"})
  lines = log.getvalue().split("\n")
  assert len(lines) <= 4
  assert "\r" not in log.getvalue()
  assert "1000/1000" in lines[-2]
  assert "loss=0.1" in lines[-2]


def test_a_bar_that_is_not_left_leaves_no_empty_lines_in_a_log(monkeypatch):
  log = io.StringIO()
  monkeypatch.setattr(sys, "stderr", log)
  assert list(screen.Bar(range(5), leave=False)) == [0, 1, 2, 3, 4]
  assert "" not in log.getvalue().split("\n")[:-1]


def test_a_table_in_a_log_cuts_no_name(capsys):
  name = "a_long_name_" * 40
  table = Table("task", "metric")
  table.add_row(name, "1.0")
  screen.console().print(table)
  assert name in capsys.readouterr().out
