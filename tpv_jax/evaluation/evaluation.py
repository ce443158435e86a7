"""Evaluation of prompts on tasks, by generation and by the scores of the labels."""

import contextlib
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax

from tpv_jax.backbones import loading
from tpv_jax.core import files
from tpv_jax.core.checks import Lengths, OneOf, Size, checked
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data import batches, tables, text_files
from tpv_jax.data.labels import check_labels, check_task
from tpv_jax.data.lines import read_text
from tpv_jax.data.tasks import SPLITS, Example, Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import partitioning, processes
from tpv_jax.embedded import suite
from tpv_jax.evaluation import candidates, report, searching, seeds, streaming, terminal
from tpv_jax.evaluation.candidates import Candidate
from tpv_jax.evaluation.evaluator import AT_ONCE, Evaluator, Prompt
from tpv_jax.formats.sources import Which
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs.run_folder import alone_at_output, versions

_SEARCH_DEFAULTS = ("validation", None, "exact_match")

Split = Annotated[str, OneOf(SPLITS)]


@checked
@processes.one_clear_line_if_memory_is_short(
  "Lower BATCH_SIZE or PROMPTS_AT_ONCE, shorten LENGTHS, set DTYPE = 'bfloat16', or cut "
  "the backbone over devices (MODEL_PARALLEL)."
)
@alone_at_output
def evaluate(
  model: SoftPromptModel,
  backbone: str | loading.Backbone,
  tasks: Sequence[Any],
  vocabulary: Vocabulary,
  lengths: Lengths,
  splits: Sequence[Split] = ("test",),
  prompt: candidates.Source | Sequence[candidates.Source | None] | None = None,
  vector: candidates.Vector | Sequence[candidates.Vector] | None = None,
  initial: candidates.Source | Sequence[candidates.Source] | None = None,
  coefficient: float | Sequence[float] = 1.0,
  which: Which = "best",
  search: bool | Sequence[float] = False,
  search_split: Split = "validation",
  search_examples: Size | None = None,
  search_metric: searching.Metric = "exact_match",
  own_tasks: bool = False,
  batch_size: Size = 64,
  at_once: Size = AT_ONCE,
  output: files.PathLike | None = None,
  predictions: bool = False,
  table: files.PathLike | None = None,
  overwrite: bool = False,
  model_parallel: Size = 1,
  progress: bool = True,
  printed: bool = True,
) -> dict[str, Any]:
  """Evaluates prompts, and vectors on initial prompts, in one pass; returns the scores.

  Prompts of one form (equal shapes) share calls; each other form has its own.

  Args:
    model: owns prediction and scoring.
    backbone: what `load_backbone` takes, or its result.
    tasks: the tasks to evaluate on.
    vocabulary: the backbone's.
    lengths: `{'inputs': T, 'targets': L}` in tokens, EOS included.
    splits: the splits of each task to evaluate on.
    prompt: one or a list; see `candidates.read` for this and the next three.
    vector: one or a list; each may be a sum.
    initial: one or a list.
    coefficient: a number or a list of them, for all vectors.
    which: the 'best', 'last' or 'initial' prompt of a run folder given as `prompt`.
    search: choose the coefficient of each vector on each initial prompt, from
      `candidates.GRID` (True) or from the numbers given, instead of using `coefficient`;
      and with it the settings that a merge's 'search' names, in the same pass.
    search_split: the split on which the coefficients are tried.
    search_examples: how many of the first examples of each task are used; None uses all.
    search_metric: 'exact_match' of greedy decoding with the target, however answers are
      chosen; 'label_accuracy', of the label that scores highest; or 'own', each task's own
      metric of the decoded text, which takes longer. The mean over the tasks decides;
      the smaller coefficient wins a tie.
    own_tasks: evaluate each candidate only on the tasks that it was trained on.
    batch_size: examples per call.
    at_once: prompts on the devices at once; give fewer if they do not fit.
    output: a JSON file for the results; nothing is written by default.
    predictions: write a line for each example beside `output`, as `<output>.predictions.jsonl`.
    table: a file for the table of scores, in Markdown (.md) or CSV (.csv).
    overwrite: replace outputs that exist.
    model_parallel: devices over which each parameter is split.
    progress: show a progress bar.
    printed: print the table.

  Raises:
    UserError: inputs that do not belong together, or an output that exists.
  """
  outputs = report.Outputs(output, predictions, table, overwrite)
  outputs.check()
  check_tasks(tasks)
  if not splits:
    raise UserError(f"EVAL_SPLITS is {splits!r}. Give a list of at least one.")
  asked = {*splits}
  if search is not False:
    searching.check(tasks, coefficient, vector, search_metric)
    coefficient = candidates.GRID if search is True else search
    asked.add(search_split)
  elif (search_split, search_examples, search_metric) != _SEARCH_DEFAULTS:
    raise UserError(
      "SEARCH_SPLIT, SEARCH_EXAMPLES and SEARCH_METRIC say how a coefficient is searched "
      "for, and SEARCH is False. Set SEARCH = True, or leave them out."
    )
  for task in tasks:
    check_task(task, vocabulary, lengths, sorted(asked))
  coefficients: Any = (
    coefficient if isinstance(coefficient, list | tuple) else [coefficient]
  )
  processes.wait_for_all("the outputs are checked")
  loaded = loading.loaded(backbone, model.network, vocabulary)
  searched = search is not False
  groups = candidates.read(prompt, vector, initial, coefficients, which, searched)
  for one in itertools.chain(*groups):
    if one.leaves is not None and one.provenance is not None:
      candidates.check_fits(one.leaves, one.provenance, loaded)
  known = [one.provenance for one in itertools.chain(*groups)]
  candidates.say_other_template(known, vocabulary.chat)
  candidates.say_other_quantization(known, model.network)
  evaluator = Evaluator(
    model,
    loaded.params,
    vocabulary,
    lengths,
    batch_size,
    partitioning.make_mesh(model_parallel),
    at_once,
    progress,
  )

  def tasks_of(candidate: Candidate) -> Sequence[Task]:
    return candidates.tasks_of(candidate, tasks) if own_tasks else tasks

  searches: searching.Searches = {}
  if search is not False:
    evaluator.title = "search"
    groups, searches = searching.best_of_each(
      evaluator, groups, tasks_of, search_split, search_examples, search_metric
    )
  evaluator.title = ""
  chosen = list(itertools.chain(*groups))
  candidates.say_ratios(chosen)
  cells = [
    (one, task, split) for one in chosen for task in tasks_of(one) for split in splits
  ]
  results = evaluator.evaluate_all(
    [(one.leaves, task, split) for one, task, split in cells]
  )
  names = [one.name for one, _, _ in cells] if len(chosen) > 1 else None
  of_seeds = seeds.of_seeds(
    [(one, result) for (one, _, _), result in zip(cells, results, strict=True)]
  )
  content = {
    **report.candidates_of(chosen, searches),
    "backbone": loaded.stated(model.network),
    "decoding": model.choice.to_json(),
    "results": report.scores_of(results, names),
    **({"groups": of_seeds} if of_seeds else {}),
    "work": evaluator.work.to_json(),
    "versions": versions(),
  }
  if processes.is_writer():
    if printed:
      report.show(results, chosen, names)
      if of_seeds:
        seeds.show(of_seeds)
      print(f"{len(results)} results in {evaluator.work}")
    outputs.write(content, results, tasks, names)
  return content


def check_tasks(tasks: Sequence[Any]) -> None:
  """Raises `UserError` unless these are tasks of different names."""
  if not isinstance(tasks, list | tuple) or not tasks:
    raise UserError(f"TASKS is {tasks!r}. Give a list of at least one.")
  for task in tasks:
    if not isinstance(task, Task):
      raise UserError(
        f"TASKS has {task!r}, not a task.{near_misses(str(task), suite.TASKS)} Bind "
        "tasks, such as @suite.task() or @text_files.text_file_task(); "
        "eval_embedded.gin takes names as TASK_NAMES."
      )
  names = [task.name for task in tasks]
  for index, name in enumerate(names):
    if name in names[:index]:
      raise UserError(f"TASKS has '{name}' twice. Give each task once.")


@checked
@processes.one_clear_line_if_memory_is_short(
  "Lower BATCH_SIZE, shorten LENGTHS, set DTYPE = 'bfloat16', or cut the backbone over "
  "devices (MODEL_PARALLEL)."
)
@alone_at_output
def infer(
  model: SoftPromptModel,
  backbone: str,
  vocabulary: Vocabulary,
  lengths: Lengths,
  input_file: files.PathLike | None = None,
  output: files.PathLike | None = None,
  prompt: str | None = None,
  which: Which = "best",
  vector: candidates.Vector | None = None,
  initial: str | None = None,
  coefficient: float = 1.0,
  labels: Any = None,
  batch_size: Size = 64,
  overwrite: bool = False,
  model_parallel: Size = 1,
) -> int:
  """Writes what the model generates for each line of a text file, as JSON lines.

  Without a file, lines are typed at the terminal or come from a pipe, and each is answered
  before the next is read: by its text as it grows, or by the label that scores highest.

  Args:
    input_file: UTF-8 text, one source per line; lines end with a line feed, or a carriage
      return and a line feed. No template is applied. None for standard input.
    output: of a file's lines, JSON lines `{"inputs", "generated"}`; with labels also
      `"label"` (the one that scores highest) and `"scores"` (log-probabilities by label).
    labels: also score these: a list of words, or a task's mapping from values to words.
    See `evaluate` for the others.

  Returns: 0, the exit code.

  Raises:
    UserError: an input that is empty or not text, an output that exists, labels that
      the model cannot write, or a prompt of another backbone.
  """
  _check_output(input_file, output, overwrite)
  words = None
  if labels is not None:
    words = tuple(dict.fromkeys(text_files.label_words(labels).values()))
    check_labels(words, vocabulary, lengths["targets"], "LABELS")
  processes.wait_for_all("the output is checked")
  lines = [] if input_file is None else _lines(input_file)
  loaded = loading.load_backbone(backbone, model.network, vocabulary)
  leaves, provenance = candidates.subject(prompt, vector, initial, coefficient, which)
  if provenance is not None:
    candidates.check_fits(leaves, provenance, loaded)
  # Where answers are printed, nothing else is.
  with contextlib.redirect_stdout(sys.stderr if output is None else sys.stdout):
    candidates.say_other_template([provenance], vocabulary.chat)
    candidates.say_other_quantization([provenance], model.network)
  evaluator = Evaluator(
    model,
    loaded.params,
    vocabulary,
    lengths,
    1 if output is None else batch_size,
    partitioning.make_mesh(model_parallel),
    1,
  )
  if output is None:
    _answer_as_asked(evaluator, leaves or None, words)
    return 0
  tokenized = evaluator.tokenize([Example(line, "") for line in lines])
  generated, scored = evaluator.answer(leaves or None, tokenized, words)
  rows: list[dict[str, Any]] = [
    {"inputs": line, "generated": text}
    for line, text in zip(lines, generated, strict=True)
  ]
  if words is not None and scored is not None:
    for row, row_scores in zip(rows, scored, strict=True):
      row["label"] = words[int(row_scores.argmax())]
      row["scores"] = dict(zip(words, map(float, row_scores), strict=True))
  if processes.is_writer():
    files.write_text(output, "".join(map(report.json_line, rows)), overwrite)
    print(
      f"Wrote {len(rows)} lines to {output}; each was read as it is, without a template. "
      f"Sources: {tokenized.sources}."
      + ("" if model.choice.is_greedy else f" Answers: {model.choice}.")
    )
  return 0


def _check_output(
  input_file: files.PathLike | None, output: files.PathLike | None, overwrite: bool
) -> None:
  """Raises `UserError` unless a file's answers have a place, and other answers none."""
  if input_file is not None and output is not None:
    files.check_output(output, overwrite)
  elif input_file is not None:
    raise UserError(
      "The answers to INPUT_FILE need a place: give --gin.OUTPUT as well."
    )
  elif output is not None:
    raise UserError(
      f"OUTPUT = '{output}' is for the answers to INPUT_FILE, and none is given, so answers "
      "go to the terminal. Give --gin.INPUT_FILE, or leave OUTPUT out ('tpv infer ... < "
      "lines.txt > answers.txt' reads and writes text)."
    )
  elif jax.process_count() > 1:
    raise UserError(
      "Lines from the terminal are answered by a single process. Give INPUT_FILE and "
      "OUTPUT, or start one process."
    )


def _answer_as_asked(
  evaluator: Evaluator, prompt: Prompt, words: Sequence[str] | None
) -> None:
  """Answers each line of standard input before the next one is read."""
  if terminal.is_typed():
    print(
      "Type a source, with the words of the task's template, and press Enter. Ctrl-D ends.",
      file=sys.stderr,
    )
  writer = streaming.Writer(evaluator, prompt)
  vocabulary, most = evaluator.vocabulary, evaluator.lengths["targets"]
  labels = None if words is None else batches.label_tokens(words, vocabulary, most)
  left_out = "" if vocabulary.chat is None else vocabulary.chat.frames[1].before
  for number, line in enumerate(terminal.lines()):
    tokenized = evaluator.tokenize([Example(line, "")])
    if tokenized.sources:
      print(f"Note on line {number + 1}: {tokenized.sources}.", file=sys.stderr)
    if words is None:
      tokens = writer.tokens(tokenized.inputs[0], number)
      terminal.show(streaming.growing_text(vocabulary.decode, tokens, left_out))
    else:
      ((scores, _),) = evaluator.score([(prompt, tokenized, labels)])
      terminal.show([words[int(scores[0].argmax())]])


_TABLES = (*tables.FORMATS, ".parquet", ".xlsx")


def _lines(path: files.PathLike) -> list[str]:
  """Returns the lines of a text file, without their line ends."""
  if (suffix := pathlib.PurePath(path).suffix.lower()) in _TABLES:
    raise UserError(
      f"'{path}' is a table ({suffix}), and INPUT_FILE has one source a line, which is "
      "read as it is. Write the sources, with the words of the task's template, to a .txt "
      "file; or evaluate the file as a task (gin_configs/tasks/text_files.gin with "
      "runs/eval.gin), with PREDICTIONS = True."
    )
  text = read_text(path, "INPUT_FILE")
  if not text:
    raise UserError(f"'{path}' is empty. Give a text file with one source a line.")
  lines = text.removesuffix("\n").split("\n")
  return [line.removesuffix("\r") for line in lines]
