"""A table of results: a list of rows, shown as people read it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.core import files, tables
from tpv_jax.core.errors import UserError, printable

if TYPE_CHECKING:
  import pandas


class Table(list[dict[str, Any]]):
  """Rows by name of their column; `pandas.DataFrame(table)` takes it as it is.

  Attributes:
    report: all that the command would write as JSON; {} if there is nothing else.
    means: a row for each group of runs that differ in their seeds only, with means and
      deviations.
  """

  def __init__(
    self,
    rows: Iterable[dict[str, Any]] = (),
    report: Mapping[str, Any] | None = None,
    percent: bool = False,
    means: Iterable[dict[str, Any]] = (),
  ):
    """Takes rows; with `percent` their fractions are shown in percent."""
    super().__init__(rows)
    self.means: list[dict[str, Any]] = Table(means, percent=percent) if means else []
    self.report: Mapping[str, Any] = report or {}
    self._percent = percent

  @property
  def columns(self) -> list[str]:
    """The names of all columns, in order."""
    return list(dict.fromkeys(name for row in self for name in row))

  def column(self, name: str) -> list[Any]:
    """Returns the values of a column, None where a row has none."""
    if name not in self.columns:
      raise UserError(
        f"There is no column '{name}'; the columns are {', '.join(self.columns)}."
      )
    return [row.get(name) for row in self]

  def to_pandas(self) -> "pandas.DataFrame":
    """Returns a data frame.

    Raises:
      UserError: pandas is not installed.
    """
    try:
      import pandas
    except ImportError:
      raise UserError(
        "pandas is not installed: pip install pandas. The rows are there without it."
      ) from None
    return pandas.DataFrame(list(self), columns=self.columns)

  def to_markdown(self) -> str:
    """Returns a table in Markdown, as it is shown."""
    header, *rows = [
      [cell.replace("|", r"\|") for cell in line] for line in self._shown()
    ]
    return tables.markdown_table(header, rows)

  def to_csv(self, path: files.PathLike | None = None, overwrite: bool = False) -> str:
    """Returns text in CSV, with all digits, and writes it to a file if one is given.

    Raises:
      UserError: the file exists, and `overwrite` is false.
    """
    text = tables.csv_text(self)
    if path is not None:
      files.write_text(path, text, overwrite)
    return text

  def __repr__(self) -> str:
    """Returns the rows as aligned lines."""
    return tables.aligned(self._shown(), left=2) if self else "<an empty table>"

  def _repr_html_(self) -> str:
    header, *rows = self._shown()
    return tables.html(rows, header)

  def _shown(self) -> list[list[str]]:
    """Returns the header and the cells as people read them, without columns of zeros."""
    names = [
      name
      for name in self.columns
      if any(value != 0 or type(value) is not int for value in self.column(name))
    ]
    return [names, *([self._cell(row.get(name)) for name in names] for row in self)]

  def _cell(self, value: Any) -> str:
    if value is None:
      return ""
    if isinstance(value, float):
      return f"{100 * value:.1f}" if self._percent else f"{value:.4g}"
    return printable(str(value))
