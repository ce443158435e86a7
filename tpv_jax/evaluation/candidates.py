"""What is evaluated: prompts, and vectors or sums of them on initial prompts.

They are read from files and folded, so that each can be an entry of a bank.
"""

import dataclasses
import glob
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, cast

import numpy as np

from tpv_jax.backbones import loading, quantization
from tpv_jax.backbones.protocol import Network
from tpv_jax.core import files, identity, screen
from tpv_jax.core.checks import NotEmpty, misfit
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.tasks import Task
from tpv_jax.devices import processes
from tpv_jax.formats import sources
from tpv_jax.runs import records, run_settings
from tpv_jax.vectors import algebra, moving
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.merging import merge as merging
from tpv_jax.vectors.merging import registry as merge_rules
from tpv_jax.vectors.provenance import Provenance, describe_precision

GRID = tuple(round(0.05 * step, 2) for step in range(21))
"""The coefficients that a search tries by default: 21 in [0, 1] (task arithmetic's)."""

NO_PROMPT = "no prompt"
"""The name of the backbone alone."""

Source = str | Loaded
"""What `sources.load` takes, or a prompt or vector in memory."""

Vector = Source | Sequence[Source] | Mapping[str, Any]
"""A vector or its file, several for their sum, several files with weights, or a merge.

A merge is a mapping with the name of its 'rule', the list 'of' files or vectors, and perhaps
'weights', 'lambda' and the rule's options, as in
{'rule': 'ties', 'of': ['a.safetensors', 'b.safetensors'], 'density': 0.2}. In a search it may
have 'search', a mapping from options, 'lambda' or 'weights' to the list of values that are
tried, all combinations of them: {..., 'search': {'density': [0.2, 0.5]}}.
"""


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A folded prompt that is evaluated.

  Attributes:
    name: as the user gave it, for tables.
    leaves: 'prompt' [P, D] and perhaps 'delta' [M, D]; None for the backbone alone.
    provenance: None for the backbone alone.
    coefficient: of the vector that it was made with; None without a vector.
    tasks: the names of the tasks that it, or its vector, was trained on.
    run: of a run's prompt, the run's settings without its seeds, as text to compare.
    ratio: of a vector on another initial prompt than its own, `moving.ratio`.
    settings: of a merge, those that a search tries.
  """

  name: str
  leaves: Mapping[str, np.ndarray] | None
  provenance: Provenance | None
  coefficient: float | None = None
  tasks: tuple[str, ...] = ()
  run: str | None = None
  ratio: float | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def to_json(self) -> dict[str, Any]:
    """Returns the candidate as a report states it."""
    known = self.provenance
    return {
      "name": self.name,
      "coefficient": self.coefficient,
      **({} if self.ratio is None else {"ratio": self.ratio}),
      **({"settings": dict(self.settings)} if self.settings else {}),
      "prompt": None if known is None else known.to_json(),
      "prompt_digest": None
      if self.leaves is None
      else identity.prompt_digest(self.leaves),
    }


def read(
  prompt: Source | Sequence[Source | None] | None = None,
  vector: Vector | Sequence[Vector] | None = None,
  initial: Source | Sequence[Source] | None = None,
  coefficients: Sequence[Any] = (1.0,),
  which: str = "best",
  searched: bool = False,
) -> list[list[Candidate]]:
  """Returns the candidates in groups, of which a search chooses one each.

  Those of a group differ only in the coefficient, and in settings of a merge.

  Args:
    prompt: a run folder, an Orbax checkpoint, a file that tpv wrote, a pattern such as
      'runs/sst2-*', or a prompt in memory; or a list of them. None in a list is the
      backbone alone, and so is giving neither prompt nor vector.
    vector: a vector or its file, or a list. An entry of a list may itself be a list of
      vectors to add, a mapping from files to the weights of such a sum, or a merge (see
      `Vector`). Each entry is applied to each initial prompt, times each coefficient.
    initial: an initial prompt (of a run folder, its initial prompt), or a list.
    coefficients: of the vectors.
    which: the 'best', 'last' or 'initial' prompt of a run folder given as `prompt`.
    searched: whether a search chooses from each group.

  Raises:
    UserError: inputs that do not belong together, or something given twice.
  """
  prompts = [None] if prompt is None else matching(_listed(prompt))
  vectors: list[Vector] = [] if vector is None else _listed(vector)
  if vectors:
    prompts = [] if prompt is None else prompts
  elif initial is not None or tuple(coefficients) != (1.0,):
    raise UserError(
      "INITIAL and COEFFICIENT say where a vector is applied, and no vector was given: "
      "give --gin.VECTOR as well. (An initial prompt alone: PROMPT_PATH with "
      "--gin.WHICH='\"initial\"'.)"
    )
  if vectors and not initial:
    raise UserError(
      f"The vector '{name_of(vectors[0])}' must be applied to an initial prompt: give "
      "--gin.INITIAL as well (a run folder means its initial prompt)."
    )
  if not coefficients:
    raise UserError("The list of coefficients is empty. Give at least one, such as 1.")
  for number in coefficients:
    if (
      isinstance(number, bool)
      or not isinstance(number, int | float)
      or not math.isfinite(number)
    ):
      raise UserError(
        f"A coefficient is {number!r}; it must be a finite number, such as 0.5."
      )
  refuse_repeated(
    "PROMPT_PATH", ["None" if one is None else _named(one) for one in prompts]
  )
  refuse_repeated("VECTOR", [name_of(one) for one in vectors])
  refuse_repeated("COEFFICIENT", [f"{float(one)!r}" for one in coefficients])
  groups = [[_prompt(path, which)] for path in prompts]
  sources.refuse_unread(which, prompts)
  starts: list[Source] = [] if initial is None else _listed(initial)
  refuse_repeated("INITIAL", [_named(one) for one in starts])
  loaded = {_named(one): load(one, "initial") for one in starts}
  for one in vectors:
    totals = [(stated, load_vector(stated), each) for each, stated in tries(one)]
    if len(totals) > 1 and not searched:
      raise UserError(
        f"'search' of the merge '{name_of(one)}' says what a search tries, and SEARCH is "
        "False. Set SEARCH = True, or give one value of each option beside 'of'."
      )
    groups += [
      [
        _on(stated, total, (path, start), coefficient, settings)
        for stated, total, settings in totals
        for coefficient in coefficients
      ]
      for path, start in loaded.items()
    ]
  if not groups:
    raise UserError(
      "PROMPT_PATH is an empty list, which leaves nothing to evaluate. Give a prompt, or "
      "None for the backbone alone."
    )
  return groups


def _on(
  vector: Vector,
  total: Loaded,
  initial: tuple[str, Loaded],
  coefficient: float,
  settings: Mapping[str, Any],
) -> Candidate:
  """Returns a vector, times a coefficient, on an initial prompt of some name."""
  path, start = initial
  applied = algebra.fold(algebra.apply(total, start, coefficient))
  moved = applied.provenance.cross_origin
  return Candidate(
    f"{_text(coefficient)} * {name_of(vector)} on {path}",
    dict(applied.leaves),
    applied.provenance,
    float(coefficient),
    total.provenance.tasks,
    ratio=moving.ratio(total, start, coefficient) if moved else None,
    settings=settings,
  )


def subject(
  prompt: Source | None,
  vector: Vector | None,
  initial: Source | None,
  coefficient: float,
  which: str,
) -> tuple[dict[str, np.ndarray], Provenance | None]:
  """Returns the one folded prompt to evaluate and its provenance, or ({}, None).

  Raises:
    UserError: as in `read`, or both a prompt and a vector are given.
  """
  if prompt is not None and vector is not None:
    raise UserError("Both a prompt and a vector were given; evaluate one at a time.")
  found = read(prompt, vector, initial, (coefficient,), which)
  if len(found) != 1:
    raise UserError(
      f"{len(found)} prompts were given, and only an evaluation (eval.gin) takes several. "
      "Give one PROMPT_PATH, or one VECTOR on one INITIAL."
    )
  ((one,),) = found
  return dict(one.leaves or {}), one.provenance


def equal_scores(what: str, scores: Sequence[float], chosen: str) -> str | None:
  """Returns a line to show if all tries of a search score the same, otherwise None.

  Args:
    what: names the search.
    scores: one for each try.
    chosen: what the search took nevertheless, and by which rule.
  """
  if len(scores) < 2 or min(scores) < max(scores):
    return None
  return (
    f"{what}: all {len(scores)} tries score {scores[0]:.4g}, so none is best; the search "
    f"took {chosen}. Use more examples, another metric or other tries to tell them apart."
  )


def say_equal_scores(what: str, scores: Sequence[float], chosen: str) -> None:
  """Shows the line of `equal_scores`, if there is one."""
  line = equal_scores(what, scores, chosen)
  if line and processes.is_writer():
    screen.say(line)


def tasks_of(candidate: Candidate, tasks: Sequence[Task]) -> list[Task]:
  """Returns the tasks that the candidate was trained on, all of them if it names none.

  Raises:
    UserError: one of them is not among `tasks`.
  """
  by_name = {task.name: task for task in tasks}
  for name in candidate.tasks:
    if name not in by_name:
      raise UserError(
        f"'{candidate.name}' was trained on the task '{name}', which is not among the "
        f"tasks {', '.join(by_name)}.{near_misses(name, by_name)} Add it to TASKS, or "
        "evaluate on all of them: OWN_TASKS = False."
      )
  return [by_name[name] for name in candidate.tasks] or list(tasks)


def check_fits(
  leaves: Mapping[str, np.ndarray], provenance: Provenance, backbone: loading.Backbone
) -> None:
  """Raises `UserError` unless the leaves are a prompt for this backbone."""
  if provenance.kind != "prompt":
    raise UserError(
      "A vector is a difference of prompts, not a prompt. To apply it, give it as "
      "--gin.VECTOR with --gin.INITIAL."
    )
  known = provenance.backbone_fingerprint
  if known is not None and known != backbone.fingerprint:
    raise UserError(
      f"The prompt was trained on the backbone '{provenance.backbone_name}' ({known[:12]}"
      f"…), not on '{backbone.name}' ({backbone.fingerprint[:12]}…). Choose that backbone."
    )
  width = backbone.table.shape[1]
  if leaves["prompt"].shape[1] != width:
    raise UserError(
      f"The prompt has width {leaves['prompt'].shape[1]}, the backbone {width}. "
      "Choose the backbone that it was trained on."
    )


def say_other_template(found: Iterable[Provenance | None], chat: Any) -> None:
  """Says so if prompts were trained by another chat template than they are tried with.

  Args:
    found: the provenance of each prompt.
    chat: the `ChatTemplate` of this evaluation, or None.
  """
  mine = None if chat is None else chat.digest
  trained = {one.chat_digest for one in found if one is not None and one.terms}
  for other in sorted(trained - {mine}, key=str):
    theirs, here = (
      "without a stated chat template"
      if one is None
      else f"by chat template {one[:12]}…"
      for one in (other, mine)
    )
    screen.say(
      f"Note: a prompt was trained on texts written {theirs} and is tried on texts "
      f"written {here}. If that is not meant, set CHAT as in the run's config.gin."
    )


def say_other_quantization(
  found: Iterable[Provenance | None], network: Network
) -> None:
  """Says so if prompts were trained on the backbone quantised in another way.

  Args:
    found: the provenance of each prompt.
    network: says how the backbone is quantised now.
  """
  mode = quantization.mode_of(network)
  trained = {one.quantize for one in found if one is not None and one.terms}
  for other in sorted(trained - {mode}, key=str):
    screen.say(
      f"Note: a prompt was trained on the backbone {describe_precision(other)} and is "
      f"tried on it {describe_precision(mode)}. If that is not meant, set QUANTIZE as in "
      "the run's config.gin."
    )


def say_ratios(found: Iterable[Candidate]) -> None:
  """Says how long vectors are beside other starts than their own, in one line."""
  moved = {one.name: one.ratio for one in found if one.ratio is not None}
  if not moved or not processes.is_writer():
    return
  low, high = min(moved.values()), max(moved.values())
  if len(moved) == 1:
    (name,) = moved
    screen.say(f"Note: '{name}', another start than its own: {moving.told(low)}.")
  else:
    screen.say(
      f"Note: {len(moved)} vectors on other starts than their own: {moving.told(low, high)}."
    )


def _listed(given: Any) -> list[Any]:
  """Returns several as a list, and one as a list of one."""
  return [given] if isinstance(given, str | Loaded | Mapping) else list(given)


def matching(prompts: Sequence[Source | None]) -> list[Source | None]:
  """Returns the prompts, and for each pattern among them the paths that match it.

  If a pattern matches run folders, other files beside them are left out.

  Raises:
    UserError: nothing matches.
  """
  found: list[Source | None] = []
  for one in prompts:
    if (
      not isinstance(one, str) or not glob.has_magic(one) or files.to_path(one).exists()
    ):
      found.append(one)
      continue
    paths = sorted(glob.glob(os.path.expanduser(one)), key=_natural)
    runs = [path for path in paths if sources.is_run_folder(path)]
    if not paths:
      raise UserError(f"PROMPT_PATH: no run or file matches '{one}'.")
    found += runs or paths
  return found


def _natural(path: str) -> list[tuple[int, str]]:
  """Returns a key that sorts 'sst2-2' before 'sst2-10'."""
  parts = re.split(r"(\d+)", path)
  return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def load(source: Source, which: str = "best") -> Loaded:
  """Returns a prompt or vector that is in memory or in a file; see `sources.load_any`."""
  return source if isinstance(source, Loaded) else sources.load_any(source, which)


def _named(source: Source) -> str:
  return source.name if isinstance(source, Loaded) else source


def _prompt(source: Source | None, which: str) -> Candidate:
  if source is None:
    return Candidate(NO_PROMPT, None, None)
  loaded = load(source, which)
  if loaded.provenance.kind == "prompt":
    loaded = algebra.fold(loaded)
  return Candidate(
    _named(source),
    dict(loaded.leaves),
    loaded.provenance,
    tasks=loaded.provenance.tasks,
    run=None if isinstance(source, Loaded) else _settings_but_seeds(source),
  )


def _settings_but_seeds(path: str) -> str | None:
  """Returns the settings of the run in a folder without its seeds, or None if it is none."""
  manifest = records.manifest(files.to_path(path))
  if manifest is None:
    return None
  settings = run_settings.flatten(manifest["settings"])
  seeded = ("seed", "initial_seed", "initial_digest", "data/seed")
  kept = {name: value for name, value in settings.items() if name not in seeded}
  return json.dumps(kept, sort_keys=True)


def _weights(vector: Vector) -> list[tuple[Source, float]]:
  """Returns the vectors of a sum with their weights."""
  if isinstance(vector, Mapping):
    wrong = misfit(vector, Mapping[str, float], "A sum of VECTOR")
    if wrong is not None:
      raise UserError(f"{wrong} (For a merge, give 'rule' and 'of'.)")
    return list(vector.items())
  addends: list[Source] = _listed(vector)
  refuse_repeated("A sum of VECTOR", [_named(one) for one in addends])
  return [(one, 1.0) for one in addends]


def _is_merge(vector: Vector) -> bool:
  return isinstance(vector, Mapping) and "rule" in vector


def tries(vector: Vector) -> list[tuple[dict[str, Any], Vector]]:
  """Returns the settings that the 'search' of a merge asks for, each with its merge.

  Of other vectors it is the vector alone, without settings.

  Raises:
    UserError: there is nothing to try, or a setting is both stated and searched for.
  """
  if not _is_merge(vector) or "search" not in cast(Mapping[str, Any], vector):
    return [({}, vector)]
  stated = dict(cast(Mapping[str, Any], vector))
  asked, what = stated.pop("search"), "'search' of a merge of VECTOR"
  lists = Annotated[Mapping[str, Annotated[Sequence[Any], NotEmpty()]], NotEmpty()]
  if (wrong := misfit(asked, lists, what)) is not None:
    raise UserError(str(wrong))
  for name, values in asked.items():
    if name in stated:
      raise UserError(
        f"A merge of VECTOR states '{name}' and searches for it. Give one of the two."
      )
    refuse_repeated(f"'{name}' in {what}", [repr(value) for value in values])
  chosen = [
    dict(zip(asked, values, strict=True))
    for values in itertools.product(*asked.values())
  ]
  return [(settings, stated | settings) for settings in chosen]


def check_merge(vector: Mapping[str, Any], what: str) -> None:
  """Raises `UserError` unless a mapping states a merge, before any file is read.

  Args:
    vector: the mapping, see `Vector`.
    what: names it in errors.
  """
  options = dict(vector)
  for name, kind in (
    ("rule", str),
    ("of", Sequence[str | Loaded]),
    ("weights", Sequence[float] | None),
    ("lambda", float),
  ):
    value = options.pop(name, 1.0 if name == "lambda" else None)
    if (wrong := misfit(value, kind, f"'{name}' of {what}")) is not None:
      raise UserError(str(wrong))
  merge_rules.with_options(vector["rule"], options)


def _merge(vector: Mapping[str, Any]) -> Loaded:
  """Returns the vector that a mapping with a rule states."""
  check_merge(vector, "a merge of VECTOR")
  options = dict(vector)
  rule, parts = options.pop("rule"), options.pop("of")
  weights, coefficient = options.pop("weights", None), options.pop("lambda", 1.0)
  return merging.merge(
    [load(one) for one in parts], rule, weights, float(coefficient), options
  )


def load_vector(vector: Vector) -> Loaded:
  """Returns what an entry of VECTOR stands for.

  Raises:
    UserError: it is no vector, sum or merge.
  """
  if _is_merge(vector):
    return _merge(cast(Mapping[str, Any], vector))
  addends = _weights(vector)
  if not addends:
    raise UserError("VECTOR has an empty sum. Give at least one vector's file.")
  loaded, weights = [load(one) for one, _ in addends], [w for _, w in addends]
  return loaded[0] if weights == [1.0] else algebra.sum_vectors(loaded, weights)


def _text(number: float) -> str:
  """Returns the shortest text that reads back as the same number."""
  return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def name_of(vector: Vector) -> str:
  """Returns a name for an entry of VECTOR."""
  if _is_merge(vector):
    stated = dict(cast(Mapping[str, Any], vector))
    parts = ", ".join(map(_named, _listed(stated.pop("of", ()))))
    rule = stated.pop("rule")
    return f"{rule}({parts})" + "".join(f" {name}={stated[name]}" for name in stated)
  text = " + ".join(
    _named(one) if weight == 1 else f"{_text(weight)} {_named(one)}"
    for one, weight in _weights(vector)
  )
  return text if isinstance(vector, Source) else f"({text})"


def refuse_repeated(what: str, given: Sequence[str]) -> None:
  """Raises `UserError` if a list of the user's has an entry twice."""
  for index, one in enumerate(given):
    if one in given[:index]:
      raise UserError(f"{what} has '{one}' twice. Give each once.")
