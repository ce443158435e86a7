"""Changes of raw rows that some templates need."""

import re

from tpv_jax.core.errors import UserError
from tpv_jax.data.papers import definition
from tpv_jax.data.papers.definition import Row


def marked_wsc(row: Row, where: str) -> Row:
  """Returns the row with '*' around the noun and '#' around the pronoun, as T5 does.

  A span's index counts words. A span that is not there stays unmarked, as in T5.
  """
  first, second = (definition.index(row, f"span{i}_index", where) for i in (1, 2))
  text = _marked(
    definition.text(row, "text", where),
    definition.text(row, "span1_text", where),
    first,
    "*",
  )
  # If the first span comes before, its marks are two more words.
  second += 2 * (first < second)
  text = _marked(text, definition.text(row, "span2_text", where), second, "#")
  return {**row, "text": text}


def _marked(text: str, span: str, index: int, mark: str) -> str:
  return re.sub(
    rf"^((?:\S+\s){{{index}}})({re.escape(span)})",
    rf"\1{mark} \2 {mark}",
    text,
    flags=re.ASCII,
  )


def starred_pronoun(row: Row, where: str) -> Row:
  """Returns the row with '*' on both sides of the pronoun, as T5's `wsc_simple` does.

  In one row the pronoun's index is off by one, and in another punctuation follows the
  pronoun. T5 has the results for these two written out, and this gives the same.
  """
  pronoun = definition.text(row, "span2_text", where)
  words = definition.text(row, "text", where).split(" ")
  index = definition.index(row, "span2_index", where)
  for place in (index, index + 1):
    if place < len(words) and words[place].startswith(pronoun):
      rest = words[place].removeprefix(pronoun)
      words[place : place + 1] = [f"*{pronoun}*", *filter(None, [rest])]
      break
  else:
    raise UserError(
      f"{where}: word {index} is not the pronoun '{pronoun}' that 'span2_text' names. "
      "Correct 'span2_index'."
    )
  changed = {**row, "text": " ".join(words)}
  if {"label", "span1_text"} <= {*row}:  # A row that is to be answered lacks them.
    noun = definition.text(row, "span1_text", where)
    changed["answers"] = (noun if definition.truth(row, where) == "True" else "",)
  return changed


def without_markup(row: Row, where: str) -> Row:
  """Returns MultiRC's row without the HTML in it, as T5 does."""
  return {
    **row,
    **{
      column: re.sub(
        "</?b>", "", definition.text(row, column, where).replace("<br>", " ")
      )
      for column in ("question", "answer", "paragraph")
    },
  }


def first_answer(row: Row, where: str) -> Row:
  """Returns SQuAD's row with its first answer and all of them, or `UNANSWERABLE`."""
  column = "answers/text"
  found = row.get(column)
  if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
    if column not in row:
      definition.text(row, column, where)
    raise UserError(
      f"{where}: '{column}' must be a list of strings, [] if the context has no answer. "
      "Correct the row."
    )
  answers = tuple(dict.fromkeys(found)) or (definition.UNANSWERABLE,)
  return {**row, "answer": answers[0], "answers": answers}
