"""The tasks of both papers, as one table: source, template, labels, splits, metrics.

Plain Python. `sources` reads and exports the data, `seqio_tasks` streams it to T5X; both
make an example of a row by `Definition.example`, so the two roads give equal strings.
`gin_configs/tasks/NAME.gin` and docs/tasks.md are written from here (`tpv tasks`).
"""

import dataclasses
import functools
import importlib.resources
import json
import re
import string
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.batches import order
from tpv_jax.data.tasks import Example, check_split
from tpv_jax.data.text_files import FROM_TRAIN, nearest_multiple

TPV = "TPV"
"""The task-vector paper (arXiv 2408.01119)."""

EPT = "EPT"
"""The EPT paper (arXiv 2405.11464)."""

UNANSWERABLE = "unanswerable"
"""The target of a SQuAD v2 question that its context does not answer. Ours."""

SEED = 0
"""Of the rows that a split rule takes; another seed gives other splits."""

SOURCE_LENGTH = 256
"""The longest source of both papers, in tokens."""

MEASURED: dict[str, tuple[int, int, int, int, int]] = {
  "glue_qnli": (5463, 54, 98, 130, 305),
  "glue_sst2": (7792, 31, 58, 70, 108),
  "glue_stsb": (7249, 30, 70, 87, 152),
  "glue_mrpc": (4045, 66, 92, 103, 138),
  "glue_rte": (2767, 65, 178, 224, 313),
  "glue_cola": (9594, 12, 23, 29, 49),
  "super_glue_boolq": (3334, 141, 292, 435, 1138),
  "super_glue_wic": (702, 30, 44, 51, 74),
  "super_glue_wsc": (168, 37, 83, 99, 132),
  "super_glue_cb": (120, 85, 184, 285, 298),
  "snli": (2527, 32, 52, 64, 85),
  "ag_news": (7600, 63, 88, 115, 216),
  "glue_qnli_t5": (5463, 59, 103, 135, 310),
  "glue_sst2_t5": (7792, 36, 63, 75, 113),
  "glue_stsb_t5": (7249, 35, 75, 92, 157),
  "glue_mrpc_t5": (4045, 71, 97, 108, 143),
  "glue_rte_t5": (2767, 69, 182, 228, 317),
  "glue_cola_t5": (9594, 14, 25, 31, 51),
  "super_glue_boolq_t5": (3334, 145, 296, 439, 1142),
  "super_glue_wic_t5": (702, 33, 47, 54, 77),
  "super_glue_wsc_t5": (168, 40, 83, 99, 132),
  "super_glue_cb_t5": (120, 88, 187, 288, 301),
}
"""Sources in tokens of T5's vocabulary, EOS included: texts, median, 95th and 99th
percentile, the longest. Measured on public copies of train and held-out rows, some of
them parts of the official splits (QNLI, SNLI, BoolQ, WiC, CB, WSC). AG News: the test file
only. SST-2: the data set of whole sentences (6,920 and 872), while GLUE trains on phrases
as well. MRPC: an imperfect copy, without GLUE's own validation split."""

Row = Mapping[str, Any]
"""A raw row: texts, numbers, lists of texts; a class by its name, None if not given."""


@dataclasses.dataclass(frozen=True)
class Definition:
  """A task: where its rows come from, and what they mean.

  Attributes:
    name: one word; `_t5` at the end: the T5 package's template.
    title: what it is about.
    tfds: the data set's name in TensorFlow Datasets, or None.
    hugging_face: its name in the Hugging Face hub, where TFDS has it not.
    template: the source text, columns in braces.
    labels: the source's class names in their order, each with its label word; None
      where targets are free.
    papers: `TPV`, `EPT`.
    licence: what the source says of it.
    sizes: how many rows the source's 'train' split and its `held_out` one have.
    large: the rule of the splits: 1,000 rows of train become validation, and `held_out`
      is the test split; otherwise `held_out` is halved into validation and test.
    target: the column of the answer.
    metrics: names in `metrics.METRICS`; the first is the task's own.
    held_out: the source's split that the rule speaks of.
    epochs: of a source prompt in the task-vector paper.
    target_length: the longest target in tokens of T5's vocabulary, EOS included.
    most_tokens: of a source; the papers' 256, but for long answers.
    change: gives the row that the template reads, where that is not the raw one.
    rounded_to: targets are numbers, written as the nearest multiple.
    limits: the least and the largest of targets that are numbers.
    answers: the column of all accepted answers.
    trained_class: the only class whose rows are in train and validation; None: all.
    trained_rows: how many of train's rows those are; None: all.
    group: the column of the group that an example belongs to; only of large tasks. A
      group lies in train or in validation as a whole, by its name, whatever the seed.
    skip_unlabelled: rows without a label are left out and are no error.
  """

  name: str
  title: str
  template: str
  labels: Mapping[str, str] | None
  papers: tuple[str, ...]
  licence: str
  sizes: tuple[int, int]
  large: bool
  target: str = "label"
  metrics: tuple[str, ...] = ("exact_match", "macro_f1")
  tfds: str | None = None
  hugging_face: str | None = None
  held_out: str = "validation"
  epochs: int = 10
  target_length: int = 8
  most_tokens: int = SOURCE_LENGTH
  change: Callable[[Row, str], Row] | None = None
  rounded_to: str | None = None
  limits: tuple[float, float] | None = None
  answers: str | None = None
  trained_class: str | None = None
  trained_rows: int | None = None
  group: str | None = None
  skip_unlabelled: bool = False

  @property
  def data(self) -> str:
    """The name of the data set, which a T5-style variant shares."""
    return self.name.removesuffix("_t5")

  @property
  def classes(self) -> dict[str, list[str]]:
    """The source's class names in their order, by the column that holds them."""
    base = DEFINITIONS[self.data]
    return {} if base.labels is None else {base.target: list(base.labels)}

  @property
  def words(self) -> tuple[str, ...] | None:
    """The label words in their order, or None where targets are free."""
    return None if self.labels is None else tuple(self.labels.values())

  @property
  def source(self) -> str:
    """Where the rows come from, in words."""
    return f"TFDS {self.tfds}" if self.tfds else f"Hugging Face {self.hugging_face}"

  @property
  def lengths(self) -> dict[str, int]:
    """The longest source and target in tokens, EOS included.

    Where sources were measured: the longest, rounded up to a multiple of 32, but not
    more than `most_tokens`. Longer texts are trimmed, and counted.
    """
    longest = MEASURED[self.name][-1] if self.name in MEASURED else self.most_tokens
    return {
      "inputs": min(self.most_tokens, -(-longest // 32) * 32),
      "targets": self.target_length,
    }

  @property
  def steps(self) -> int:
    """The task-vector paper's training: `epochs` at batches of 32."""
    rows = self.sizes[0] if self.trained_rows is None else self.trained_rows
    train = rows - (FROM_TRAIN if self.large else 0)
    return -(-train * self.epochs // 32)

  @property
  def split_rule(self) -> str:
    """How the papers' splits are made of the source's, in words."""
    if self.group is not None:
      return (
        f"about {FROM_TRAIN:,} of train, in whole groups, become validation; "
        f"{self.held_out} is test"
      )
    if self.large:
      return f"{FROM_TRAIN:,} of train become validation; {self.held_out} is test"
    rule = f"{self.held_out} is halved into validation and test"
    if self.trained_class is not None:
      return f"{rule}; only test keeps rows that are not {self.trained_class}"
    return rule

  def places(
    self, split: str, counts: Mapping[str, int], seed: int = SEED
  ) -> tuple[str, Int[np.ndarray, "N"]]:
    """Returns the source's split that `split` is taken from, and its rows' numbers.

    Disjoint, by seed, in the source's order: the rules of arXiv 2408.01119, section 4.
    A train split of fewer than 2,000 rows gives half of them, not 1,000; the odd row of
    a held-out split goes to test. Both ours. Where examples have a `group`, train and
    validation both get all rows of train, and `example` keeps each split's own.

    Args:
      split: 'train', 'validation' or 'test'.
      counts: how many rows each of the source's splits has.
      seed: of the choice.

    Raises:
      UserError: no such split.
    """
    check_split(self.name, split)
    from_train = ("train", "validation") if self.large else ("train",)
    source = "train" if split in from_train else self.held_out
    count = counts[source]
    if split == ("test" if self.large else "train") or self.group is not None:
      return source, np.arange(count)
    taken = min(FROM_TRAIN, count // 2) if self.large else count // 2
    chosen = order(count, seed)
    return source, np.sort(chosen[:taken] if split == "validation" else chosen[taken:])

  def example(self, row: Row, where: str, split: str) -> Example | None:
    """Returns the example of a raw row, None if the split has it not.

    Args:
      row: by column; a class is its name in the source.
      where: names the row in errors.
      split: that the row is for; see `trained_class` and `group`.

    Raises:
      UserError: a column is missing, or the label is, or it is outside the set.
    """
    if self.skip_unlabelled and row.get(self.target) is None:
      return None
    wanted = self.trained_class if split != "test" else None
    if wanted is not None and _truth(row, where) != wanted:
      return None
    if self.change is not None:
      row = self.change(row, where)
    inputs = self.template.format_map(
      {name: _text(row, name, where) for name in self.columns}
    )
    example = Example(
      inputs=inputs,
      targets=self._answer(_text(row, self.target, where, null="").strip(), where),
      answers=tuple(row[self.answers]) if self.answers is not None else (),
      group=_text(row, self.group, where) if self.group is not None else "",
      fields=self.fields(inputs),
    )
    if self.group is not None and split != "test":
      held_back = (
        zlib.crc32(example.group.encode()) % (self.sizes[0] // FROM_TRAIN) == 0
      )
      return example if held_back == (split == "validation") else None
    return example

  def fields(self, inputs: str) -> tuple[tuple[int, int], ...]:
    """Returns where the columns' texts lie in a source that the template gave.

    The words between them are looked for in their order, so a text that holds them itself
    ends there; columns with white space between them alone are one. Both roads ask here,
    since an exported source is all that one of them has.
    """
    found = self._pattern.fullmatch(inputs)
    return () if found is None else found.regs[1:]

  @functools.cached_property
  def _pattern(self) -> re.Pattern[str]:
    column, pattern = "(.*?)", ""
    for literal, name, _, _ in string.Formatter().parse(self.template):
      if literal.strip() or not pattern.endswith(column):
        pattern += re.escape(literal) + (column if name else "")
    return re.compile(pattern, re.DOTALL)

  @functools.cached_property
  def columns(self) -> tuple[str, ...]:
    """The columns of the template, in its order."""
    parts = string.Formatter().parse(self.template)
    return tuple(column for _, column, _, _ in parts if column)

  def _answer(self, value: str, where: str) -> str:
    if not value:
      raise UserError(
        f"{where}: no label in column '{self.target}', so there is nothing to learn. "
        "Choose a split that has labels, or remove the row."
      )
    if self.rounded_to is not None:
      rounded = nearest_multiple(value, self.rounded_to)
      if rounded is None:
        raise UserError(
          f"{where}: '{value:.80}' in column '{self.target}' is no number, but the targets "
          f"of '{self.name}' are numbers. Correct the row."
        )
      if self.limits and not self.limits[0] <= float(value) <= self.limits[1]:
        raise UserError(
          f"{where}: {value:.80} in column '{self.target}' is outside the numbers of "
          f"'{self.name}', {self.limits[0]:g} to {self.limits[1]:g}. Correct the row."
        )
      return rounded
    if self.labels is None:
      return value
    if value not in self.labels:
      raise UserError(
        f"{where}: '{value:.80}' in column '{self.target}' is outside the labels of "
        f"'{self.name}': {', '.join(self.labels)}.{near_misses(value, self.labels)} "
        "Correct the row."
      )
    return self.labels[value]


def definition(name: str) -> Definition:
  """Returns the definition of a task.

  Raises:
    UserError: there is none of that name; near misses are named.
  """
  if name not in DEFINITIONS:
    raise UserError(
      f"There is no task '{name}'.{near_misses(str(name), DEFINITIONS)} 'tpv tasks list' "
      "names all; your own files need gin_configs/tasks/text_files.gin."
    )
  return DEFINITIONS[name]


def example_rows(which: Definition) -> list[dict[str, Any]]:
  """Returns two rows in the form of the data set, invented, with classes by number."""
  file = importlib.resources.files("tpv_jax.data") / "example_rows.json"
  return json.loads(file.read_text())[which.data]


def check_classes(which: Definition, found: Mapping[str, list[str]]) -> None:
  """Raises `UserError` if the source's classes are not those that the table names.

  Args:
    which: the task.
    found: class names by column; a column that is no class column is not checked.
  """
  for column, expected in which.classes.items():
    if column in found and found[column] != expected:
      raise UserError(
        f"The label set of {which.source} has changed: it is "
        f"{', '.join(found[column])}, and task '{which.name}' knows "
        f"{', '.join(expected)}, so numbers would mean other labels. Use the version of "
        "the data set that docs/tasks.md was made with, or correct "
        "tpv_jax/data/registry.py."
      )


def _text(row: Row, column: str, where: str, null: str | None = None) -> str:
  """Returns a column's value as text; `null` stands for a missing value, None refuses."""
  if column not in row:
    raise UserError(
      f"{where}: there is no column '{column}', only {', '.join(row) or 'none'}."
      f"{near_misses(column, row)} Correct the file."
    )
  value = null if row[column] is None else row[column]
  if value is None:
    raise UserError(f"{where}: column '{column}' is empty. Fill it, or remove the row.")
  if isinstance(value, Mapping | list):
    raise UserError(
      f"{where}: '{column}' holds several values; a text or a number is needed. Flatten "
      "the file first."
    )
  return str(value)


def _index(row: Row, column: str, where: str) -> int:
  """Returns the number of a word, from 0, that a column holds."""
  text = _text(row, column, where)
  if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
    raise UserError(
      f"{where}: '{text:.80}' in column '{column}' is not the number of a word, from 0. "
      "Correct the row."
    )
  return int(text)


def _truth(row: Row, where: str) -> str:
  """Returns WSC's label, 'False' or 'True'."""
  label = _text(row, "label", where, null="")
  if label not in ("False", "True"):
    raise UserError(
      f"{where}: '{label:.80}' in column 'label' is neither False nor True, so it does not "
      "say whether the pronoun means 'span1_text'. Correct the row."
    )
  return label


def _marked_wsc(row: Row, where: str) -> Row:
  """Returns the row with '*' around the noun and '#' around the pronoun, as T5 does.

  A span's index counts words. A span that is not there stays unmarked, as in T5.
  """
  first, second = (_index(row, f"span{i}_index", where) for i in (1, 2))
  text = _marked(_text(row, "text", where), _text(row, "span1_text", where), first, "*")
  # The marks before it are two more words.
  second += 2 * (first < second)
  text = _marked(text, _text(row, "span2_text", where), second, "#")
  return {**row, "text": text}


def _marked(text: str, span: str, index: int, mark: str) -> str:
  return re.sub(
    rf"^((?:\S+\s){{{index}}})({re.escape(span)})",
    rf"\1{mark} \2 {mark}",
    text,
    flags=re.ASCII,
  )


def _starred_pronoun(row: Row, where: str) -> Row:
  """Returns the row with '*' at both sides of the pronoun, as T5's `wsc_simple` does.

  Where the pronoun's index is off by one (it is in one row), or there is punctuation
  behind it (in another), this gives what T5 has written out for these two.
  """
  pronoun = _text(row, "span2_text", where)
  words = _text(row, "text", where).split(" ")
  index = _index(row, "span2_index", where)
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
  noun = _text(row, "span1_text", where)
  right = _truth(row, where) == "True"
  return {**row, "text": " ".join(words), "answers": (noun if right else "",)}


def _without_markup(row: Row, where: str) -> Row:
  """Returns MultiRC's row without the HTML in it, as T5 does."""
  return {
    **row,
    **{
      column: re.sub("</?b>", "", _text(row, column, where).replace("<br>", " "))
      for column in ("question", "answer", "paragraph")
    },
  }


def _first_answer(row: Row, where: str) -> Row:
  """Returns SQuAD's row with its first answer and all of them, or `UNANSWERABLE`."""
  column = "answers/text"
  found = row.get(column)
  if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
    if column not in row:
      _text(row, column, where)
    raise UserError(
      f"{where}: '{column}' must be a list of texts, [] where the context has no answer. "
      "Correct the row."
    )
  answers = tuple(dict.fromkeys(found)) or (UNANSWERABLE,)
  return {**row, "answer": answers[0], "answers": answers}


def _same(*words: str) -> dict[str, str]:
  return {word: word for word in words}


_NLI = _same("entailment", "neutral", "contradiction")
_CATEGORY = "What is the category for following text: "

_PAPER_STYLE = (
  Definition(
    name="glue_mnli",
    title="MNLI: whether a premise entails a hypothesis",
    tfds="glue/mnli",
    template="premise: {premise} hypothesis: {hypothesis}",
    labels=_NLI,
    papers=(TPV, EPT),
    licence="by genre: OANC, CC BY-SA 3.0, CC BY 3.0",
    sizes=(392_702, 9_815),
    large=True,
    held_out="validation_matched",
  ),
  Definition(
    name="glue_qqp",
    title="QQP: whether two questions mean the same",
    tfds="glue/qqp",
    template="question1: {question1} question2: {question2}",
    labels=_same("not_duplicate", "duplicate"),
    metrics=("exact_match", "f1"),
    papers=(TPV, EPT),
    licence="Quora's terms",
    sizes=(363_849, 40_430),
    large=True,
  ),
  Definition(
    name="glue_qnli",
    title="QNLI: whether a sentence answers a question",
    tfds="glue/qnli",
    template="question: {question} sentence: {sentence}",
    labels=_same("entailment", "not_entailment"),
    metrics=("exact_match", "f1"),
    papers=(TPV, EPT),
    licence="CC BY-SA 4.0",
    sizes=(104_743, 5_463),
    large=True,
  ),
  Definition(
    name="glue_sst2",
    title="SST-2: the sentiment of a sentence",
    tfds="glue/sst2",
    template="sentence: {sentence}",
    labels=_same("negative", "positive"),
    metrics=("exact_match", "f1"),
    papers=(TPV, EPT),
    licence="none stated (research)",
    sizes=(67_349, 872),
    large=True,
  ),
  Definition(
    name="glue_stsb",
    title="STS-B: how similar two sentences are, 0.0 to 5.0",
    tfds="glue/stsb",
    template="sentence1: {sentence1} sentence2: {sentence2}",
    labels=None,
    metrics=("pearson", "spearman"),
    papers=(TPV, EPT),
    licence="scores CC BY-SA 4.0, texts by source",
    sizes=(5_749, 1_500),
    large=False,
    rounded_to="0.2",
    limits=(0, 5),
  ),
  Definition(
    name="glue_mrpc",
    title="MRPC: whether two sentences are paraphrases",
    tfds="glue/mrpc",
    template="sentence1: {sentence1} sentence2: {sentence2}",
    labels=_same("not_equivalent", "equivalent"),
    metrics=("f1", "exact_match"),
    papers=(TPV, EPT),
    licence="Microsoft Research's terms",
    sizes=(3_668, 408),
    large=False,
  ),
  Definition(
    name="glue_rte",
    title="RTE: whether a text entails a hypothesis",
    tfds="glue/rte",
    template="sentence1: {sentence1} sentence2: {sentence2}",
    labels=_same("entailment", "not_entailment"),
    metrics=("exact_match", "f1"),
    papers=(TPV, EPT),
    licence="none stated (research)",
    sizes=(2_490, 277),
    large=False,
  ),
  Definition(
    name="glue_cola",
    title="CoLA: whether a sentence is grammatical",
    tfds="glue/cola",
    template="sentence: {sentence}",
    labels=_same("unacceptable", "acceptable"),
    metrics=("matthews", "exact_match"),
    papers=(TPV, EPT),
    licence="none stated (research)",
    sizes=(8_551, 1_043),
    large=False,
  ),
  Definition(
    name="super_glue_multirc",
    title="MultiRC: whether an answer to a question about a paragraph is right",
    tfds="super_glue/multirc",
    template="question: {question} answer: {answer} paragraph: {paragraph}",
    labels=_same("False", "True"),
    metrics=("f1", "group_exact_match"),
    papers=(EPT,),
    licence="research only (see the source)",
    sizes=(27_243, 4_848),
    large=True,
    change=_without_markup,
    group="idx/question",
  ),
  Definition(
    name="super_glue_boolq",
    title="BoolQ: a question that a passage answers with yes or no",
    tfds="super_glue/boolq",
    template="question: {question} passage: {passage}",
    labels=_same("False", "True"),
    papers=(EPT,),
    licence="CC BY-SA 3.0",
    sizes=(9_427, 3_270),
    large=False,
  ),
  Definition(
    name="super_glue_wic",
    title="WiC: whether a word means the same in two sentences",
    tfds="super_glue/wic",
    template="sentence1: {sentence1} sentence2: {sentence2} word: {word}",
    labels=_same("False", "True"),
    papers=(EPT,),
    licence="CC BY-NC 4.0",
    sizes=(5_428, 638),
    large=False,
  ),
  Definition(
    name="super_glue_wsc",
    title="WSC: whether a pronoun (#) means a noun (*)",
    tfds="super_glue/wsc.fixed",
    template="text: {text}",
    labels=_same("False", "True"),
    papers=(EPT,),
    licence="CC BY 4.0",
    sizes=(554, 104),
    large=False,
    change=_marked_wsc,
  ),
  Definition(
    name="super_glue_cb",
    title="CB: whether the author of a text commits to a hypothesis",
    tfds="super_glue/cb",
    template="premise: {premise} hypothesis: {hypothesis}",
    labels=_same("entailment", "contradiction", "neutral"),
    metrics=("macro_f1", "exact_match"),
    papers=(EPT,),
    licence="none stated (research)",
    sizes=(250, 56),
    large=False,
  ),
  Definition(
    name="scitail",
    title="SciTail: whether a sentence entails the answer to an exam question",
    tfds="sci_tail",
    template="premise: {premise} hypothesis: {hypothesis}",
    labels={"entails": "entailment", "neutral": "neutral"},
    metrics=("exact_match", "f1"),
    papers=(TPV,),
    licence="see the source",
    sizes=(23_097, 2_126),
    large=True,
    held_out="test",
  ),
  Definition(
    name="snli",
    title="SNLI: whether the caption of an image entails a sentence",
    tfds="snli",
    template="premise: {premise} hypothesis: {hypothesis}",
    labels=_NLI,
    papers=(TPV,),
    licence="CC BY-SA 4.0",
    sizes=(550_152, 10_000),
    large=True,
    held_out="test",
    skip_unlabelled=True,
  ),
  Definition(
    name="dbpedia",
    title="DBpedia: the class of what an article is about",
    hugging_face="fancyzhx/dbpedia_14",
    template=_CATEGORY + "title: {title} content: {content}",
    labels={
      "Company": "Company",
      "EducationalInstitution": "Educational Institution",
      "Artist": "Artist",
      "Athlete": "Athlete",
      "OfficeHolder": "Office Holder",
      "MeanOfTransportation": "Mean Of Transportation",
      "Building": "Building",
      "NaturalPlace": "Natural Place",
      "Village": "Village",
      "Animal": "Animal",
      "Plant": "Plant",
      "Album": "Album",
      "Film": "Film",
      "WrittenWork": "Written Work",
    },
    papers=(TPV,),
    licence="CC BY-SA 3.0",
    sizes=(560_000, 70_000),
    large=True,
    held_out="test",
  ),
  Definition(
    name="trec",
    title="TREC: what a question asks for (coarse classes)",
    tfds="trec",
    template="What is this question asking for: {text}",
    target="label-coarse",
    labels={
      "DESC": "Description",
      "ENTY": "Entity",
      "ABBR": "Abbreviation",
      "HUM": "Person",
      "NUM": "Quantity",
      "LOC": "Location",
    },
    papers=(TPV,),
    licence="none stated (research)",
    sizes=(5_452, 500),
    large=False,
    held_out="test",
    epochs=50,
  ),
  Definition(
    name="ag_news",
    title="AG News: the topic of a news item",
    tfds="ag_news_subset",
    template=_CATEGORY + "{title} {description}",
    labels=_same("World", "Sports", "Business", "Sci/Tech"),
    papers=(TPV,),
    licence="non-commercial use",
    sizes=(120_000, 7_600),
    large=True,
    held_out="test",
  ),
  Definition(
    name="yahoo_answers",
    title="Yahoo Answers: the topic of a question with its best answer",
    hugging_face="community-datasets/yahoo_answers_topics",
    template=(
      _CATEGORY
      + "title: {question_title} content: {question_content} answer: {best_answer}"
    ),
    target="topic",
    labels={
      "Society & Culture": "Society",
      "Science & Mathematics": "Science",
      "Health": "Health",
      "Education & Reference": "Education",
      "Computers & Internet": "Computers",
      "Sports": "Sports",
      "Business & Finance": "Business",
      "Entertainment & Music": "Entertainment",
      "Family & Relationships": "Family",
      "Politics & Government": "Politics",
    },
    papers=(TPV,),
    licence="Yahoo Webscope's terms (non-commercial)",
    sizes=(1_400_000, 60_000),
    large=True,
    held_out="test",
  ),
  Definition(
    name="yelp_polarity",
    title="Yelp: the sentiment of a review",
    tfds="yelp_polarity_reviews",
    template="sentence: {text}",
    labels={"1": "negative", "2": "positive"},
    metrics=("exact_match", "f1"),
    papers=(TPV,),
    licence="Yelp's terms",
    sizes=(560_000, 38_000),
    large=True,
    held_out="test",
  ),
  Definition(
    name="sst5",
    title="SST-5: the sentiment of a sentence, in five grades",
    hugging_face="SetFit/sst5",
    template="sentence: {text}",
    target="label_text",
    labels=_same("very negative", "negative", "neutral", "positive", "very positive"),
    papers=(TPV,),
    licence="none stated (research)",
    sizes=(8_544, 1_101),
    large=False,
  ),
  Definition(
    name="imdb",
    title="IMDB: the sentiment of a film review",
    tfds="imdb_reviews/plain_text",
    template="sentence: {text}",
    labels={"neg": "negative", "pos": "positive"},
    metrics=("exact_match", "f1"),
    papers=(TPV,),
    licence="none stated (research)",
    sizes=(25_000, 25_000),
    large=True,
    held_out="test",
  ),
  Definition(
    name="squad_v2",
    title="SQuAD v2: the answer to a question in its context, if it is there",
    tfds="squad/v2.0",
    template="question: {question} context: {context}",
    target="answer",
    labels=None,
    metrics=("squad_f1", "squad_exact_match"),
    papers=(TPV,),
    licence="CC BY-SA 4.0",
    sizes=(130_319, 11_873),
    large=True,
    change=_first_answer,
    answers="answers",
    most_tokens=512,
    target_length=64,
  ),
  Definition(
    name="math",
    title="MATH: the solution of a competition problem (Hendrycks et al. 2021)",
    hugging_face="DigitalLearningGmbH/MATH-lighteval",
    template=(
      "Solve the {level} math problem from subject {type}. Provide reasoning followed "
      "by the answer to the question. Problem: {problem}"
    ),
    target="solution",
    labels=None,
    metrics=("math_match",),
    papers=(TPV,),
    licence="MIT",
    sizes=(7_500, 5_000),
    large=True,
    held_out="test",
    most_tokens=512,
    target_length=512,
  ),
)

_T5_TEMPLATES = {
  "glue_mnli": "mnli hypothesis: {hypothesis} premise: {premise}",
  "glue_qqp": "qqp question1: {question1} question2: {question2}",
  "glue_qnli": "qnli question: {question} sentence: {sentence}",
  "glue_sst2": "sst2 sentence: {sentence}",
  "glue_stsb": "stsb sentence1: {sentence1} sentence2: {sentence2}",
  "glue_mrpc": "mrpc sentence1: {sentence1} sentence2: {sentence2}",
  "glue_rte": "rte sentence1: {sentence1} sentence2: {sentence2}",
  "glue_cola": "cola sentence: {sentence}",
  "super_glue_multirc": (
    "multirc question: {question} answer: {answer} paragraph: {paragraph}"
  ),
  "super_glue_boolq": "boolq passage: {passage} question: {question}",
  "super_glue_wic": "wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
  "super_glue_wsc": "wsc: {text}",
  "super_glue_cb": "cb hypothesis: {hypothesis} premise: {premise}",
}
"""What the T5 package's preprocessors write; the label words are the same."""

_T5_DIFFERENCES: dict[str, dict[str, Any]] = {
  # The question stands last, and 256 tokens would cut it off in 9 % of the sources.
  "super_glue_boolq": {"most_tokens": 512},
  "super_glue_wsc": {
    "title": "WSC: the noun that a pronoun (*) means",
    "target": "span1_text",
    "labels": None,
    "metrics": ("wsc_match",),
    "change": _starred_pronoun,
    "answers": "answers",
    "trained_class": "True",
    "trained_rows": 259,
    "target_length": 16,
  },
}
"""T5 reads 512 tokens. It trains WSC on right nouns only, 259 of the rows; in evaluation
the answer is compared with a noun. Validation on right nouns only is ours: its loss would
otherwise reward wrong ones."""

DEFINITIONS: dict[str, Definition] = {
  which.name: which
  for which in (
    *_PAPER_STYLE,
    *(
      dataclasses.replace(
        which,
        name=f"{which.name}_t5",
        template=_T5_TEMPLATES[which.name],
        **_T5_DIFFERENCES.get(which.name, {}),
      )
      for which in _PAPER_STYLE
      if which.name in _T5_TEMPLATES
    ),
  )
}
"""Every task by its name: those of the papers' style, then the T5 package's."""
