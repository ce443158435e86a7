import csv
import io
import json

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import tables

CELLS = [("id", "text"), ("007", 'a, "b"'), ("8", "two\nlines\r"), ("9", " x;y ")]
ADDED = [{"answer": word, "p(a)": 0.25} for word in ("a", "b", "a\tc")]


def csv_text(delimiter=","):
  text = io.StringIO()
  writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
  for row in CELLS:
    writer.writerow(row)
  return text.getvalue()


def read_back(text, delimiter=","):
  return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_file_keeps_its_cells_delimiter_mark_and_line_ends(delimiter, mark):
  content = (mark + csv_text(delimiter)).encode()
  table = tables.read("a.csv", content, "csv", {"text"})
  assert table.columns == ("id", "text")
  assert [row["text"] for row in table.rows] == [text for _, text in CELLS[1:]]
  text = tables.written(table, ADDED, "csv")
  assert text.startswith(
    mark + f"id{delimiter}text{delimiter}answer{delimiter}p(a)\r\n"
  )
  _header, *rows = read_back(text.removeprefix(mark), delimiter)
  assert [tuple(row[:2]) for row in rows] == CELLS[1:]
  assert [row[2] for row in rows] == ["a", "b", "a\tc"]


def test_json_lines_keep_every_letter_of_their_objects():
  content = b'{"n": 1.10, "big": 12345678901234567890, "text": "a\\u00e9"}\n\n{}\r\n'
  table = tables.read("a.jsonl", content, "jsonl", {"text"})
  assert table.rows[0]["n"] == "1.10"
  assert tables.written(table, ADDED[:2], "jsonl") == (
    '{"n": 1.10, "big": 12345678901234567890, "text": "a\\u00e9", "answer": "a", '
    '"p(a)": 0.25}\n'
    '{"answer": "b", "p(a)": 0.25}\n'
  )


def test_one_format_becomes_another():
  table = tables.read("a.csv", csv_text().encode(), "csv", {"text"})
  lines = tables.written(table, ADDED, "jsonl").splitlines()
  assert json.loads(lines[1]) == {
    "id": "8",
    "text": "two\nlines\r",
    "answer": "b",
    "p(a)": 0.25,
  }
  objects = b'{"a": [1, 2], "b": null}\n{"c": true, "a": 0.50}\n'
  table = tables.read("a.jsonl", objects, "jsonl", ())
  assert read_back(tables.written(table, ADDED[:2], "csv")) == [
    ["a", "b", "c", "answer", "p(a)"],
    ["[1, 2]", "", "", "a", "0.25"],
    ["0.50", "", "true", "b", "0.25"],
  ]
  assert (
    tables.written(table, ADDED[:2], "tsv").splitlines()[2].split("\t")[0] == "0.50"
  )


def test_what_a_tsv_file_cannot_hold_is_refused_by_its_place():
  table = tables.read("a.csv", csv_text().encode(), "csv", {"text"})
  with pytest.raises(UserError, match=r"a\.csv:3: column 'text' has a tab or a line"):
    tables.written(table, ADDED, "tsv")
  fitting = tables.read("a.tsv", b"id\ttext\n1\tx\n2\ty\n3\tz\n", "tsv", ())
  assert tables.written(fitting, ADDED, "tsv").splitlines()[-1] == "3\tz\ta c\t0.25"


def test_a_header_without_the_columns_is_split_where_it_has_most():
  table = tables.read("a.csv", b"txt;label\nx;1\n", "csv", {"text"})
  assert table.columns == ("txt", "label")


def test_the_index_of_a_data_frame_keeps_its_empty_name():
  table = tables.read("a.csv", b",text\n0,x\n1,y\n", "csv", {"text"})
  assert tables.written(table, ADDED[:2], "csv").splitlines() == [
    ",text,answer,p(a)",
    "0,x,a,0.25",
    "1,y,b,0.25",
  ]


def test_a_table_without_rows_is_refused():
  with pytest.raises(UserError, match="has no rows"):
    tables.read("a.csv", b"text,label\n\n", "csv", {"text"})
