"""Tasks of the registry as JSON lines: written once, then read without TensorFlow.

DATA_DIR/tpv_jax/NAME/{train,validation,test}.jsonl hold the examples, one object in each
line with "inputs" and "targets", and with "answers" and "group" if the task has them.
about.json states their rows, rule and seed, and the digest of each split.
"""

import contextlib
import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tpv_jax.core import files
from tpv_jax.core.checks import checked
from tpv_jax.core.errors import UserError, at_least, near_misses
from tpv_jax.core.files import Path, PathLike
from tpv_jax.core.screen import Bar
from tpv_jax.data import registry, sources
from tpv_jax.data.papers import definition
from tpv_jax.data.papers.definition import Definition
from tpv_jax.data.recipes import CHANGES, Recipe
from tpv_jax.data.sources import ABOUT, Say
from tpv_jax.data.tasks import (
  SPLITS,
  Example,
  Task,
  check_split,
  collapsed_source,
  digest,
)


@checked
def task(name: str, data_dir: PathLike | None = None) -> Task:
  """Returns a task of the registry, whose export is read at the first use.

  Args:
    name: in `registry.DEFINITIONS`.
    data_dir: see `sources.data_directory`.

  Raises:
    UserError: there is no such task; at the first use: it is not exported, a split was
      changed after the export, or the task has another template or rule now.
  """
  which = registry.definition(name)
  folder = folder_of(which, data_dir)

  @functools.cache
  def load(split: str) -> Sequence[Example]:
    path = folder / f"{split}.jsonl"
    about = _about(folder)
    if split not in about.get("splits", {}) or not path.exists():
      raise UserError(
        f"Split '{split}' of task '{name}' is not exported in '{folder}'. Run: "
        + (
          _command(folder, about["seed"])
          if about
          else f"tpv tasks prepare {name} --data-dir {shlex.quote(str(folder.parents[1]))}"
        )
      )
    found = tuple(_read(which, path, about["seed"]))
    expected = {"rule": which.split_rule, "template": which.template}
    if differs := [key for key, value in expected.items() if about.get(key) != value]:
      what = f"was exported with another {differs[0]} than the task has now"
    elif digest(found) != about["splits"][split]["digest"]:
      what = "differs from what was exported"
    else:
      return found
    raise UserError(f"'{path}' {what}. {_again(folder, about['seed'])}")

  first, *more = which.metrics
  return Task(
    name,
    which.words,
    first,
    load,
    tuple(more),
    functools.partial(_about, folder),
    recipe_of(which),
  )


def recipe_of(which: Definition) -> Recipe:
  """Returns how a task makes its sources and answers from raw rows.

  A class is its name in the source of the rows. A change of the answer alone, SQuAD's, is
  no part of it: its rows have the column 'answer'.
  """
  name = None if which.change is None else which.change.__name__
  return Recipe(
    task=which.name,
    template=which.template,
    target=which.target,
    labels=which.labels,
    metric=which.metrics[0],
    allow_empty=True,
    round_targets_to=which.rounded_to,
    change=name if name in CHANGES else None,
  )


@checked
def tasks(names: Sequence[str], data_dir: PathLike | None = None) -> tuple[Task, ...]:
  """Returns several tasks, for a bank or an evaluation; see `task`.

  Raises:
    UserError: `names` is a string instead of a list, or there is no such task.
  """
  return tuple(task(name, data_dir) for name in names)


def folder_of(which: Definition, data_dir: PathLike | None = None) -> Path:
  """Returns the folder to which a task is exported."""
  return sources.data_directory(data_dir) / "tpv_jax" / which.name


def examples(
  which: Definition, split: str, found: sources.Raw, seed: int = definition.SEED
) -> Iterator[Example]:
  """Yields the examples of a split, made from the rows that the papers' rule gives it.

  A validation example whose source is also in the test split is left out (ours), so that
  the two never overlap, although some data sets repeat texts.
  """
  refused = kept_from_validation(which, found, seed) if split == "validation" else ()
  source, places = which.places(split, found.counts, seed)
  wanted = set(places.tolist())
  for number, (where, row) in enumerate(found.rows(source)):
    if number in wanted:
      example = which.example(row, where, split)
      if example is not None and collapsed_source(example) not in refused:
        yield example


def kept_from_validation(
  which: Definition, found: sources.Raw, seed: int
) -> frozenset[str]:
  """Returns the sources of the test split, which validation must not have."""
  return frozenset(map(collapsed_source, examples(which, "test", found, seed)))


def export(
  which: Definition,
  data_dir: PathLike | None = None,
  splits: Sequence[str] = SPLITS,
  seed: int = definition.SEED,
  overwrite: bool = False,
  say: Say = print,
) -> Path:
  """Writes splits of a task as JSON lines and returns their folder.

  A split that was exported with the same settings is kept; each appears when it is whole.

  Args:
    which: the task.
    data_dir: see `sources.data_directory`.
    splits: of `tasks.SPLITS`.
    seed: of the splits.
    overwrite: whether `splits` are written again and then replace the old ones. If the
      settings have changed, all old splits are removed, because splits with different
      settings could overlap.
    say: called with a line about each step.

  Raises:
    UserError: the rows are not prepared, one of them does not fit the task's definition,
      or there are splits with another seed or of other rows and `overwrite` is False.
  """
  for split in splits:
    check_split(which.name, split)
  at_least("The seed of the splits", seed, 0)
  found = sources.raw(which, data_dir)
  folder = folder_of(which, data_dir)
  about = {
    "task": which.name,
    "rows": found.origin,
    "rule": which.split_rule,
    "seed": seed,
    "template": which.template,
  }
  there = {} if overwrite and _damaged(folder) else _about(folder)
  done: dict[str, Any] = there.pop("splits", {})
  same = there == about
  if there and not same and not overwrite:
    key = next(k for k in {**about, **there} if about.get(k) != there.get(k))
    keep = f", to go on with that seed: {_command(folder, there['seed'])}"
    raise UserError(
      f"'{folder}' holds this task with another {key} ({there.get(key)} there, "
      f"{about.get(key)} now), and old and new splits could overlap. To replace all of "
      f"them: {_command(folder, seed)} --overwrite{keep if key == 'seed' else ''}; or "
      "choose another --data-dir."
    )
  old: list[str] = []
  if overwrite:
    old = [
      f"{split}.jsonl"
      for split in (splits if same else SPLITS)
      if (folder / f"{split}.jsonl").exists()
    ]
    done = {k: done[k] for k in done if same and k not in splits}
  left = []
  for split in splits:
    if split in done and (folder / f"{split}.jsonl").exists():
      count = done[split]["examples"]
      say(f"{which.name}, {split}: {count} examples are there already")
    else:
      left.append(split)
  write = functools.partial(_write, which, found, seed=seed)
  if not old:
    for split in left:
      done[split], line = write(split, folder, folder / f"{split}.jsonl")
      say(line)
      files.write_json(folder / ABOUT, {**about, "splits": done})
    return folder
  _replace(folder, {**about, "splits": done}, left, old, write, say)
  say(f"{which.name}: replaced {', '.join(old)} in {folder}")
  return folder


def _replace(
  folder: Path,
  about: dict[str, Any],
  left: Sequence[str],
  old: Sequence[str],
  write: Callable[[str, Path, Path], tuple[dict[str, Any], str]],
  say: Say,
) -> None:
  """Replaces old splits by new ones; the old ones stay until the new ones are whole.

  Args:
    folder: of the task.
    about: the content of about.json, without the splits that are written.
    left: the splits to write.
    old: the files to remove.
    write: `_write` with the first arguments bound.
    say: see `export`.
  """
  done = about["splits"]
  kept = {**about, "splits": dict(done)}
  with contextlib.ExitStack() as stack:
    # If the call is killed after `kept` is written, new splits count as not exported. In
    # an object store, where nothing is renamed, it is written before the splits.
    into: Path = folder
    if files.is_remote(folder):
      files.write_json(folder / ABOUT, kept)
    else:
      into = stack.enter_context(files.scratch_folder(folder / ABOUT))
    for split in left:
      done[split], line = write(split, into, folder / f"{split}.jsonl")
      say(line)
    if into != folder:
      files.write_json(folder / ABOUT, kept)
      for split in left:
        (into / f"{split}.jsonl").replace(folder / f"{split}.jsonl")
    for name in {*old} - {f"{split}.jsonl" for split in left}:
      (folder / name).unlink()
    files.write_json(folder / ABOUT, about)


def _write(
  which: Definition, found: sources.Raw, split: str, into: Path, place: Path, seed: int
) -> tuple[dict[str, Any], str]:
  """Writes a split `into` a folder; returns its entry for about.json, and a line.

  The line is for people, and names `place`, the final path.
  """
  path = into / place.name
  bar = Bar(
    examples(which, split, found, seed),
    desc=f"{which.name}, {split}",
    total=len(which.places(split, found.counts, seed)[1]),
    unit=" examples",
  )
  count = sources.write_lines(path, (_line(example) for example in bar))
  about = {"examples": count, "digest": digest(_read(which, path, seed))}
  return about, f"{which.name}, {split}: {count} examples in {place}"


def _about(folder: Path) -> dict[str, Any]:
  form = {
    "task": str,
    "rows": str,
    "rule": str,
    "seed": int,
    "template": str,
    "splits": {str: {"examples": int, "digest": str}},
  }
  return sources.read_about(folder, form, _again(folder, definition.SEED))


def _damaged(folder: Path) -> bool:
  try:
    _about(folder)
  except UserError:
    return True
  return False


def _command(folder: Path, seed: int) -> str:
  """Returns the command that exports the task of a folder."""
  name, data_dir = folder.name, shlex.quote(str(folder.parents[1]))
  return f"tpv tasks export {name} --data-dir {data_dir} --seed {seed}"


def _again(folder: Path, seed: int) -> str:
  return f"Export the task again: {_command(folder, seed)} --overwrite"


def _line(example: Example) -> dict[str, Any]:
  line: dict[str, Any] = {"inputs": example.inputs, "targets": example.targets}
  if example.answers:
    line["answers"] = example.answers
  if example.group:
    line["group"] = example.group
  return line


def _read(which: Definition, path: Path, seed: int) -> Iterator[Example]:
  words, again = which.words, _again(path.parent, seed)
  for where, line in sources.read_lines(path):
    inputs, targets = (line.get(name) for name in ("inputs", "targets"))
    if not isinstance(inputs, str) or not isinstance(targets, str):
      raise UserError(f"{where}: 'inputs' and 'targets' must both be strings. {again}")
    if words is not None and targets not in words:
      raise UserError(
        f"{where}: '{targets}' is outside the labels {', '.join(words)} of "
        f"'{which.name}'.{near_misses(targets, words)} {again}"
      )
    answers, group = line.get("answers", []), line.get("group", "")
    if (
      not isinstance(group, str)
      or not isinstance(answers, list)
      or not all(isinstance(one, str) for one in answers)
    ):
      raise UserError(
        f"{where}: 'answers' must be a list of strings, and 'group' a string. {again}"
      )
    yield Example(inputs, targets, tuple(answers), group, which.fields(inputs))
