"""Files that nobody has described: their form is found out, or said plainly."""

import json

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import raw_tables

ROWS = [
  ("the food, was fine", "very good"),
  ("never\r\nagain", "bad"),
  ('"wow"', "very good"),
]


def quoted(delimiter, end="\n", header=True):
  rows = [("text", "label"), *ROWS] if header else ROWS
  return "".join(
    delimiter.join(f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row) + end
    for row in rows
  )


@pytest.fixture
def look(tmp_path):
  def looked(name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return raw_tables.look(path)

  return looked


@pytest.mark.parametrize(
  ("name", "content", "form"),
  [
    ("a.csv", quoted(","), "CSV with commas and a header"),
    ("a.csv", "\ufeff" + quoted(";", "\r\n"), "CSV with semicolons and a header"),
    ("a.csv", quoted("\t"), "CSV with tabs and a header"),
    ("a.tsv", quoted("\t"), "CSV with tabs and a header"),
    ("a.txt", quoted(","), "CSV with commas and a header"),
    ("a.csv", quoted(",", header=False), "CSV with commas without a header"),
    (
      "a.data",
      "".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in ROWS),
      "JSON lines",
    ),
  ],
)
def test_delimiter_header_and_format_are_found_out(look, name, content, form):
  table = look(name, content)
  assert f"{form}, UTF-8, 3 rows" in table.describe()
  text, label = table.columns.values()
  assert text.cells == tuple(text for text, _ in ROWS)
  assert label.counts == {"very good": 2, "bad": 1}
  if table.header:
    assert [*table.columns] == ["text", "label"]


def test_quotes_of_glue_like_tsv_files_have_no_meaning(look):
  table = look("a.tsv", 'text\tlabel\nthe "best" one\tgood\n"odd\tbad\n')
  assert table.columns["text"].cells == ('the "best" one', '"odd')


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", quoted(",").encode("utf-16"), r"looks like UTF-16\. .*iconv -f UTF-16"),
    (
      "a.csv",
      "text,label\nun café,x\n".encode("cp1252"),
      r"\(then line 2 has 'café'\)",
    ),
    ("a.csv", b"PK\x03\x04\xff", r"a workbook .*save its sheet as CSV"),
    ("a.csv", b"PAR1\x00", r"is Parquet"),
    ("a.csv.gz", b"\x1f\x8b\x08\x00", r"compressed by gzip.*gunzip"),
    ("a.csv", "", r"is empty"),
    ("a.csv", "text,label\n", r"a header and no rows"),
    ("a.csv", "text\nfoo\n", r"one column only"),
    ("a.json", '[{"a": 1}]', r"one JSON list.*python -c"),
    ("a.jsonl", "text,label\n", r"line, or give the file another ending if this is no"),
    ("a.csv", 'text,label\n"a,b\n', r"a\.csv:2: malformed CSV"),
  ],
)
def test_what_cannot_be_read_is_said_with_what_to_do(look, name, content, message):
  with pytest.raises(UserError, match=message):
    look(name, content)


def test_a_missing_file_has_near_misses(look, tmp_path):
  look("reviews.csv", quoted(","))
  with pytest.raises(UserError, match=r"Did you mean 'reviews\.csv'"):
    raw_tables.look(tmp_path / "review.csv")


def test_columns_count_values_empty_cells_and_words(look):
  table = look("a.csv", "text,n,label\na b c,1,x\n,2,\nd,3.5,x\nr,agged\n")
  assert table.rows == 4
  assert table.remarks == (
    "1 rows have more or fewer than the 3 columns of the first line",
  )
  text, number, label = table.columns.values()
  assert (text.empty, text.words, text.numbers) == (1, 2.0, False)
  assert (number.numbers, label.empty, label.counts) == (True, 1, {"x": 2})


@pytest.mark.parametrize(
  ("first", "header"),
  [(",text,label", True), (",,text", False), ("7,,text", False)],
)
def test_only_the_numbers_of_an_index_may_have_no_name(look, first, header):
  table = look("a.csv", f"{first}\n0,fine,good\n1,poor,bad\n")
  assert table.header == header
  assert not look("a.csv", ",text,label\nx,fine,good\n1,poor,bad\n").header
