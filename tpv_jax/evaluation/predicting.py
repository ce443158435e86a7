"""Answers to rows of columns, read and written as the run of a prompt did it.

The run's manifest says how ("subject"), so that no gin file is needed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tpv_jax.backbones import loading, networks
from tpv_jax.core import files
from tpv_jax.core.checks import Size, checked
from tpv_jax.core.errors import UserError, near_misses, option
from tpv_jax.data import batches, vocabularies
from tpv_jax.data.labels import check_labels, spelling
from tpv_jax.data.metrics import registry as metrics
from tpv_jax.data.recipes import Recipe, value
from tpv_jax.data.tasks import Example
from tpv_jax.devices import partitioning
from tpv_jax.evaluation import candidates
from tpv_jax.evaluation.evaluator import Evaluator, Prompt
from tpv_jax.formats import sources
from tpv_jax.formats.sources import Which
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs import subject
from tpv_jax.runs.subject import Subject

ANSWER, SCORE = "answer", "score"
"""The columns that are added for every task."""


def probability_of(label: str) -> str:
  """Returns the column of a label's probability."""
  return f"p({label})"


@dataclasses.dataclass(frozen=True)
class Asked:
  """The prompt that is to answer, and the run that says how.

  Attributes:
    prompt: a run folder, a prompt's file, a checkpoint, or a prompt in memory; None if
      `vector` is given.
    run: whose lengths, recipe and vocabulary apply; None for the one that `prompt`, or
      otherwise `initial`, is or lies in.
    which: the 'best', 'last' or 'initial' prompt of a run folder given as `prompt`.
    vector: a vector or its file, several for their sum, or several files with weights.
    initial: what the vector is applied to.
    coefficient: of the vector.
    subject: what a run would state, where there is none.
  """

  prompt: candidates.Source | None = None
  run: str | None = None
  which: Which = "best"
  vector: candidates.Vector | None = None
  initial: candidates.Source | None = None
  coefficient: float = 1.0
  subject: Subject | None = None

  def __post_init__(self) -> None:
    """Raises `UserError` unless one prompt is asked for."""
    if (self.prompt is None) == (self.vector is None):
      given = "Neither a prompt nor" if self.prompt is None else "Both a prompt and"
      raise UserError(
        f"{given} a vector was given. Give {option('prompt', 'RUN')}, or "
        f"{option('vector', 'FILE')} with {option('initial', 'RUN')}."
      )
    if self.vector is None and (self.initial is not None or self.coefficient != 1):
      raise UserError(
        "An initial prompt and a coefficient say where a vector is applied, and no vector "
        f"was given. Give {option('vector', 'FILE')}, too."
      )
    if not isinstance(self.prompt, str):
      sources.refuse_unread(self.which, [])
    if self.vector is not None and self.initial is None:
      raise UserError(
        "A vector must be applied to an initial prompt. Give "
        f"{option('initial', 'RUN')}, too (a run folder means its initial prompt)."
      )

  def subject_of(self) -> Subject:
    """Returns what the run states.

    Raises:
      UserError: there is no run, or it does not state enough.
    """
    if self.subject is not None:
      return self.subject
    paths = [
      one for one in (self.run, self.prompt, self.initial) if isinstance(one, str)
    ]
    run = sources.run_of(paths[0]) if paths else None
    if run is None:
      what = f"'{paths[0]}' is not in a run folder" if paths else "No run was given"
      raise UserError(
        f"{what}, and a run says how sources are written. Give the one that was trained "
        f"on the task: {option('run', 'RUN')}."
      )
    return subject.read(run)


@dataclasses.dataclass(frozen=True)
class Predicted:
  """The answers to rows.

  Attributes:
    added: by column, for each row: `ANSWER`; `SCORE`, its log-probability; and of a task
      with labels, `probability_of` each.
    losses: what the sources lost when they were tokenised.
    exact_match: the share of right answers among the rows whose target is known; None if
      there are none.
    compared: how many those are.
    strange: values of the target column that are no labels, and were not compared.
  """

  added: list[dict[str, Any]]
  losses: batches.Losses
  exact_match: float | None = None
  compared: int = 0
  strange: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A prompt on its backbone, ready to answer rows.

  Attributes:
    evaluator: has the backbone on the devices.
    prompt: folded.
    recipe: makes sources from rows.
  """

  evaluator: Evaluator
  prompt: Prompt
  recipe: Recipe

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns that are added to a row."""
    return columns_of(self.recipe)

  def examples(
    self, rows: Sequence[Mapping[str, Any]], places: Sequence[str] | None = None
  ) -> list[Example]:
    """Returns the rows as examples without targets.

    Args:
      rows: by column; further columns are ignored.
      places: name the rows in errors; by default they are numbered from 1.

    Raises:
      UserError: a row lacks a column of the template.
    """
    places = places or [f"row {number}" for number in range(1, len(rows) + 1)]
    check_columns(self.recipe, rows, places)
    return [
      Example(source, "", fields=fields)
      for source, fields in map(self.recipe.source, rows, places)
    ]

  def predict(
    self, rows: Sequence[Mapping[str, Any]], places: Sequence[str] | None = None
  ) -> Predicted:
    """Returns the answers to the rows, in their order; see `examples`."""
    if not rows:
      return Predicted([], batches.Losses())
    examples = self.examples(rows, places)
    tokenized = self.evaluator.tokenize(examples)
    if self.recipe.words is None:
      added = self._free(examples, tokenized)
    else:
      added = self._chosen(tokenized, self.recipe.words)
    return Predicted(added, tokenized.sources, *self._compared(rows, added))

  def _chosen(
    self, tokenized: batches.Tokenized, words: Sequence[str]
  ) -> list[dict[str, Any]]:
    tokens = batches.label_tokens(
      words, self.evaluator.vocabulary, self.evaluator.lengths["targets"]
    )
    ((scores, _),) = self.evaluator.score([(self.prompt, tokenized, tokens)])
    names = list(map(probability_of, words))
    return [
      {
        ANSWER: words[int(row.argmax())],
        SCORE: _rounded(row.max()),
        **dict(zip(names, map(_rounded, shares(row)), strict=True)),
      }
      for row in scores
    ]

  def _free(
    self, examples: Sequence[Example], tokenized: batches.Tokenized
  ) -> list[dict[str, Any]]:
    evaluator = self.evaluator
    texts, _ = evaluator.answer(self.prompt, tokenized, None)
    pairs = evaluator.tokenize(
      [
        dataclasses.replace(one, targets=text)
        for one, text in zip(examples, texts, strict=True)
      ]
    )
    ((scores, _),) = evaluator.score([(self.prompt, pairs, None)])
    return [
      {ANSWER: text, SCORE: _rounded(row[0])}
      for text, row in zip(texts, scores, strict=True)
    ]

  def _compared(
    self, rows: Sequence[Mapping[str, Any]], added: Sequence[Mapping[str, Any]]
  ) -> tuple[float | None, int, tuple[str, ...]]:
    """Returns the exact match, of how many rows, and the values that are no labels.

    A cell that is no value of `recipe.labels` may be a label word itself. A value comes
    first: of a task with labels exchanged, it is another value's word.
    """
    recipe, vocabulary = self.recipe, self.evaluator.vocabulary
    right, answered, strange = [], [], []
    only_words = {*(recipe.words or ())} - {*(recipe.labels or ())}
    for row, more in zip(rows, added, strict=True):
      text = value(row, recipe.target, "") if recipe.target in row else ""
      if not (text := text.strip()):
        continue
      try:
        right.append(text if text in only_words else recipe.answer(text, ""))
        answered.append(str(more[ANSWER]))
      except UserError:
        strange.append(text)
    if not right:
      return None, 0, tuple(strange)
    longest = self.evaluator.lengths["targets"]
    written = [spelling(one, vocabulary, longest) for one in right]
    known = None if recipe.words is not None else written
    scores = metrics.compute(["exact_match"], right, answered, written=known)
    return scores["exact_match"], len(right), tuple(strange)


def columns_of(recipe: Recipe) -> tuple[str, ...]:
  """Returns the columns that are added to the rows of a task."""
  return (ANSWER, SCORE, *map(probability_of, recipe.words or ()))


def check_columns(
  recipe: Recipe, rows: Sequence[Mapping[str, Any]], places: Sequence[str]
) -> None:
  """Raises `UserError` if rows lack columns of the template, or have them empty."""
  if recipe.change is not None:  # It reads other columns, and checks them itself.
    return
  empty = []
  for row, place in zip(rows, places, strict=True):
    for column in recipe.columns:
      if column not in row:
        raise UserError(
          f"{place}: there is no column '{column}', which the template of task "
          f"'{recipe.task}' needs: {recipe.template!r}. The columns are "
          f"{', '.join(row) or 'none'}.{near_misses(column, row)} Rename one, or add it."
        )
      if not value(row, column, place).strip():
        empty.append((place, column))
  if empty and not recipe.allow_empty:
    (place, column), *more = empty
    others = f", and so are {len(more)} more cells" if more else ""
    raise UserError(
      f"{place}: column '{column}' is empty{others}, and the task was trained without "
      "such rows. Fill them, or remove the rows."
    )


def shares(scores: Float[np.ndarray, " C"]) -> Float[np.ndarray, " C"]:
  """Returns the probabilities of labels, which sum to 1, from their log-probabilities."""
  odds = np.exp(scores.astype(np.float64) - scores.max())
  return odds / odds.sum()


def _rounded(number: Any) -> float:
  """Returns a number with six digits; more are noise of fp32."""
  return float(f"{float(number):.6g}")


@checked
def load(
  asked: Asked,
  backbone: str | loading.Backbone | None = None,
  vocabulary_file: files.PathLike | None = None,
  batch_size: Size = 64,
  model_parallel: Size = 1,
  progress: bool = False,
) -> Predictor:
  """Returns the prompt on its backbone, ready to answer rows.

  Args:
    asked: the prompt, and the run that says how it was trained.
    backbone: what `load_backbone` takes, or its result; None for the one that the run
      states. It must be the backbone that the prompt was trained on.
    vocabulary_file: instead of what the run states.
    batch_size: rows per call.
    model_parallel: devices over which each parameter is split.
    progress: show progress bars.

  Raises:
    UserError: the run does not state enough, its backbone is not there any more, or the
      prompt is for another one.
  """
  known = asked.subject_of()
  if known.recipe is None:
    raise UserError(
      "The run does not state how its sources are written, because its task is made by "
      "code. Write the sources to a text file, and give it to 'tpv infer' with gin files."
    )
  loaded = backbone if isinstance(backbone, loading.Backbone) else None
  place = loaded.given if loaded is not None else backbone
  given = place if isinstance(place, str) else known.backbone
  _check_there("backbone", given, known.backbone, given == known.backbone)
  file = vocabulary_file or known.vocabulary_file
  if file is not None:
    _check_there("vocabulary_file", str(file), str(file), vocabulary_file is None)
  network = networks.network(given, known.dtype, quantize=known.quantize)
  vocabulary = vocabularies.of_backbone(given, file, known.chat)
  words = known.recipe.words
  if words is not None:
    check_labels(
      words, vocabulary, known.lengths["targets"], f"task '{known.recipe.task}'"
    )
  leaves, provenance = candidates.subject(
    asked.prompt, asked.vector, asked.initial, asked.coefficient, asked.which
  )
  if provenance is not None and provenance.kind != "prompt":
    raise UserError(
      f"The prompt is a vector, a difference of prompts. Give it as "
      f"{option('vector', 'FILE')}, with {option('initial', 'RUN')}."
    )
  loaded = loaded or loading.load_backbone(given, network)
  if provenance is not None:
    candidates.check_fits(leaves, provenance, loaded)
  loading.loaded(loaded, network, vocabulary)  # Checks that they fit each other.
  model = SoftPromptModel(network, None, vocabulary, vocabulary)
  evaluator = Evaluator(
    model,
    loaded.params,
    vocabulary,
    known.lengths,
    batch_size,
    partitioning.make_mesh(model_parallel),
    1,
    progress,
  )
  return Predictor(evaluator, leaves, known.recipe)


def _check_there(what: str, path: str, stated: str, from_run: bool) -> None:
  """Raises `UserError` if a path that a run states is not there any more."""
  if from_run and not loading.is_name(path) and not files.to_path(path).exists():
    raise UserError(
      f"The run states that its {what.replace('_', ' ')} is at '{stated}', and nothing is "
      f"there now. Say where it is: {option(what, 'PATH')}."
    )


def predict(
  rows: Sequence[Mapping[str, Any]], asked: Asked, **options: Any
) -> list[dict[str, Any]]:
  """Returns the rows with the answers of a prompt behind their own columns.

  Args:
    rows: by column.
    asked: the prompt, and the run that says how it was trained.
    **options: of `load`.

  Raises:
    UserError: as `load`; or rows lack a column of the template, or have one that is added.
  """
  predictor = load(asked, **options)
  check_added(dict.fromkeys(name for row in rows for name in row), predictor.columns)
  found = predictor.predict(rows)
  return [{**row, **more} for row, more in zip(rows, found.added, strict=True)]


def check_added(there: Mapping[str, Any], added: Sequence[str], fix: str = "") -> None:
  """Raises `UserError` if rows have a column that is to be added."""
  for name in added:
    if name in there:
      raise UserError(
        f"The rows have a column '{name}' already, and the answers would need it. Rename "
        f"it{fix}."
      )
