"""Where a prompt or a vector comes from, as data that travels with its values.

docs/methods.md, "Provenance" says what operations do with it. Nothing is parsed from a
name. What is unknown is None, never guessed.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tpv_jax.core import errors
from tpv_jax.prompts import registry

KINDS = ("prompt", "vector")

SPACES = ("effective", "factor")

MOST_NESTED = 32
"""How deep merges of merges may be nested."""

_RESIDUE = 1e-12
"""A sum of coefficients is 0 up to rounding if it is this small a part of the largest."""


@dataclasses.dataclass(frozen=True)
class Part:
  """What went into a merge: the digest of a prompt or vector, and its terms."""

  digest: str
  terms: tuple["Term", ...]

  def __post_init__(self) -> None:
    _require_digest(self.digest)


@dataclasses.dataclass(frozen=True)
class Merge:
  """A merge whose result is not the sum of its parts times coefficients.

  Two merges are one and the same if all of this is equal.

  Attributes:
    rule: its name in `merging.registry`.
    settings: the options of the rule with their values, the seed among them.
    weights: one for each part; () for a rule that takes none.
    parts: what was merged, in the order in which the rule saw it.
  """

  rule: str
  settings: tuple[tuple[str, Any], ...]
  weights: tuple[float, ...]
  parts: tuple[Part, ...]

  def __post_init__(self) -> None:
    if not self.rule or not self.parts:
      raise ValueError("a merge is of no rule or of no parts")
    if self.depth > MOST_NESTED:
      raise ValueError(f"merges of merges are nested more than {MOST_NESTED} deep")

  @property
  def depth(self) -> int:
    """1 for a merge of tasks' vectors, 2 for a merge of such merges, and so on."""
    terms = [term for part in self.parts for term in part.terms]
    return 1 + max((one.merge.depth for one in terms if one.merge), default=0)

  @property
  def tasks(self) -> tuple[str, ...]:
    """The names of the tasks in its parts."""
    return tasks_of(term for part in self.parts for term in part.terms)

  def to_json(self) -> dict[str, Any]:
    """Returns a dictionary of JSON values, from which `from_json` makes an equal one."""
    return {
      "rule": self.rule,
      "settings": {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in self.settings
      },
      "weights": list(self.weights),
      "parts": [
        {"digest": part.digest, "terms": [term.to_json() for term in part.terms]}
        for part in self.parts
      ],
    }

  @classmethod
  def from_json(cls, content: Any) -> "Merge":
    """Returns the merge that `to_json` wrote.

    Raises:
      ValueError: a field is unknown, missing or of another type.
    """
    if not isinstance(content, dict) or set(content) != {
      field.name for field in dataclasses.fields(cls)
    }:
      raise ValueError(f"{content!r:.200} is not a merge")
    rule, settings, weights, parts = (
      content[name] for name in ("rule", "settings", "weights", "parts")
    )
    if (
      not isinstance(rule, str)
      or not isinstance(settings, dict)
      or not all(map(_is_setting, settings.values()))
      or not isinstance(weights, list)
      or not all(map(_is_number, weights))
      or not isinstance(parts, list)
      or not all(isinstance(part, dict) for part in parts)
      or not all(set(part) == {"digest", "terms"} for part in parts)
      or not all(isinstance(part["digest"], str) for part in parts)
      or not all(isinstance(part["terms"], list) for part in parts)
    ):
      raise ValueError(f"{content!r:.200} is not a merge")
    return cls(
      rule,
      tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(settings.items())
      ),
      tuple(map(float, weights)),
      tuple(
        Part(part["digest"], tuple(map(Term.from_json, part["terms"])))
        for part in parts
      ),
    )


@dataclasses.dataclass(frozen=True)
class Term:
  """A task, or a merge, and its coefficient in a prompt or vector.

  Attributes:
    task: None if it is unknown, or if the term is of a merge.
    coefficient: what the task's vector, or the merged one, is multiplied with.
    merge: of a vector that is not linear in its tasks' vectors. Files state it only there.
  """

  task: str | None
  coefficient: float
  merge: Merge | None = dataclasses.field(default=None, repr=False)

  def to_json(self) -> dict[str, Any]:
    """Returns a dictionary of JSON values, from which `from_json` makes an equal one."""
    content: dict[str, Any] = {"task": self.task, "coefficient": self.coefficient}
    if self.merge is not None:
      content["merge"] = self.merge.to_json()
    return content

  @classmethod
  def from_json(cls, content: Any) -> "Term":
    """Returns the term that `to_json` wrote.

    Raises:
      ValueError: a field is unknown, missing or of another type.
    """
    if not isinstance(content, dict) or content.keys() - {"merge"} != {
      "task",
      "coefficient",
    }:
      raise ValueError(f"the term {content!r:.200} is not a task with its coefficient")
    task, coefficient = content["task"], content["coefficient"]
    if not isinstance(task, str | None) or not _is_number(coefficient):
      raise ValueError(f"the term {content!r:.200} is not a task with its coefficient")
    merge = Merge.from_json(content["merge"]) if "merge" in content else None
    return cls(task, float(coefficient), merge)

  def __post_init__(self) -> None:
    if self.merge is not None and self.task is not None:
      raise ValueError(f"a term is of a merge and of the task {self.task!r}")
    if not math.isfinite(self.coefficient):
      raise ValueError(f"coefficient {self.coefficient} of {self.task!r} is not finite")
    if self.task == "":
      raise ValueError("the name of a task is empty")


@dataclasses.dataclass(frozen=True)
class Provenance:
  """What a set of leaves is: its kind, its task terms, its backbone and its origin.

  Attributes:
    kind: 'prompt' (can be prepended to a source) or 'vector' (a difference).
    terms: the tasks with their signed coefficients; () for an initial prompt.
    backbone_name: for people; one backbone may have several names.
    backbone_fingerprint: `identity.backbone_fingerprint` of the frozen backbone.
    initial_digest: `identity.prompt_digest` of the initial prompt: of a tuned prompt, the
      one that training started from; of an initial prompt, its own; of a vector, the one
      that was subtracted.
    initial_seed: the seed of that initial prompt.
    initial_norm: of a vector, and of a prompt that one was applied to, the norm of the
      vector's initial prompt, folded; None if unknown. Files state it only if it is known.
    applied_to_digest: of a prompt made by applying a vector, the digest of the prompt that
      the vector was applied to. In a cross-origin application it is not `initial_digest`.
    applied_to_seed: the seed of that prompt.
    mixed_origins: the digests, sorted, of the initial prompts in a sum with several; then
      `initial_digest` is None.
    steps: optimizer steps of the training.
    method: how the prompt was parametrised: 'plain', 'dept' or 'ept'.
    space: 'effective': the leaves are a folded prompt's, `prompt` and perhaps `delta`;
      'factor': they are the parameters of a DePT or EPT prompt. A plain prompt is the same
      in both and counts as 'effective'.
    alpha: of a DePT or EPT prompt, whose parameters mean nothing without it.
    initial_folded_digest: in the factor space, the digest of the initial prompt's folded
      form; it becomes `initial_digest` when the prompt is folded.
    chat_digest: of a prompt that was trained on turns of a conversation, the digest of the
      chat template and its system text. Files state it only if there is one.
    architecture: of the backbone, 'decoder_only'; None for an encoder-decoder, or if
      unknown.
    quantize: how the backbone's kernels were quantised during the training: 'int8', 'int4'
      or 'nf4'; None if they were not, or if unknown. The fingerprint is that of the
      backbone before.
    versions: of the packages that trained it, name -> version.
    notes: what the user overrode and what could not be known, one sentence each.

  Raises:
    ValueError: fields contradict each other, or a value is impossible.
  """

  kind: str
  terms: tuple[Term, ...] = ()
  backbone_name: str | None = None
  backbone_fingerprint: str | None = None
  initial_digest: str | None = None
  initial_seed: int | None = None
  applied_to_digest: str | None = None
  applied_to_seed: int | None = None
  mixed_origins: tuple[str, ...] = ()
  steps: int | None = None
  method: str | None = "plain"
  space: str = "effective"
  alpha: float | None = None
  initial_folded_digest: str | None = None
  chat_digest: str | None = None
  architecture: str | None = None
  quantize: str | None = None
  initial_norm: float | None = None
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise ValueError(f"kind {self.kind!r} is neither 'prompt' nor 'vector'")
    if self.space not in SPACES:
      raise ValueError(f"space {self.space!r} is neither 'effective' nor 'factor'")
    for digest in (
      self.backbone_fingerprint,
      self.initial_digest,
      self.applied_to_digest,
      self.initial_folded_digest,
      self.chat_digest,
      *self.mixed_origins,
    ):
      if digest is not None:
        _require_digest(digest)
    for name in ("initial_seed", "initial_norm", "applied_to_seed", "steps", "alpha"):
      number = getattr(self, name)
      if isinstance(number, int) and abs(number) >= 1 << 64:
        raise ValueError(f"{name} is a number of {number.bit_length()} bits")
    if self.mixed_origins and self.initial_digest is not None:
      raise ValueError("a mixed origin and one initial prompt exclude each other")
    if self.alpha is not None and not math.isfinite(self.alpha):
      raise ValueError(f"alpha is {self.alpha}")
    if self.initial_norm is not None and not 0 <= self.initial_norm < math.inf:
      raise ValueError(f"the norm of its initial prompt is {self.initial_norm}")
    self._check_space()

  def _check_space(self) -> None:
    if self.space == "factor":
      if self.mixed_origins or self.applied_to_digest not in (
        None,
        self.initial_digest,
      ):
        raise ValueError("parameters are of one origin, in the factor space")
      if self.kind == "vector" and self.initial_digest is None:
        raise ValueError("a vector of the factor space states its initial parameters")
    elif (self.alpha, self.initial_folded_digest) != (None, None):
      raise ValueError("what is folded, in the effective space, has no alpha")

  @property
  def tasks(self) -> tuple[str, ...]:
    """The names of the tasks in its terms, those of merges included, each once."""
    return tasks_of(self.terms)

  @property
  def base_digest(self) -> str | None:
    """The digest of the prompt that the terms of this one are relative to."""
    if self.applied_to_digest is not None:
      return self.applied_to_digest
    return self.initial_digest

  @property
  def base_seed(self) -> int | None:
    """The seed of the prompt with `base_digest`."""
    if self.applied_to_digest is not None:
      return self.applied_to_seed
    return self.initial_seed

  @property
  def cross_origin(self) -> bool | None:
    """Whether a vector was applied to another initial prompt; None if unknown."""
    if self.applied_to_digest is None:
      return False
    if self.initial_digest is None:
      return True if self.mixed_origins else None
    return self.applied_to_digest != self.initial_digest

  def to_json(self) -> dict[str, Any]:
    """Returns a dictionary of JSON values, from which `from_json` makes an equal one."""
    content = {
      field.name: getattr(self, field.name) for field in dataclasses.fields(self)
    }
    content["terms"] = [term.to_json() for term in self.terms]
    content["mixed_origins"] = list(self.mixed_origins)
    content["versions"] = dict(sorted(self.versions.items()))
    content["notes"] = list(self.notes)
    for name in ("architecture", "chat_digest", "quantize", "initial_norm"):
      if content[name] is None:
        del content[name]  # As in files from before the field existed.
    return content

  @classmethod
  def from_json(cls, content: Any) -> "Provenance":
    """Returns the provenance that `to_json` wrote.

    Raises:
      ValueError: a field is unknown, missing or of another type.
    """
    if not isinstance(content, dict):
      raise ValueError("it is not a dictionary")
    fields: dict[str, Any] = _ADDED_FIELDS | content
    if unequal := {field.name for field in dataclasses.fields(cls)} ^ set(fields):
      raise ValueError(
        f"unknown or missing fields: {', '.join(sorted(map(str, unequal)))}"
      )
    for name, types in _JSON_TYPES.items():
      if not isinstance(fields[name], types) or isinstance(fields[name], bool):
        raise ValueError(f"{name} is {fields[name]!r}")
    try:
      terms = tuple(map(Term.from_json, fields.pop("terms")))
    except RecursionError:
      raise ValueError("merges of merges are nested too deep") from None
    for name in ("mixed_origins", "notes"):
      if not all(isinstance(item, str) for item in fields[name]):
        raise ValueError(f"{name} holds what is not text")
      fields[name] = tuple(fields[name])
    if not all(isinstance(version, str) for version in fields["versions"].values()):
      raise ValueError("versions holds what is not text")
    return cls(terms=terms, **fields)

  def apart(self) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns what `to_json` does in two parts, from which `joined` makes an equal one.

    The second part stands beside the first in a file, where releases from before these
    fields existed overlook it.
    """
    content = self.to_json()
    return content, {name: content.pop(name) for name in BESIDE if name in content}

  @classmethod
  def joined(cls, content: Any, beside: Mapping[str, Any]) -> "Provenance":
    """Returns the provenance of two parts; other names in the second are overlooked.

    Raises:
      ValueError: as `from_json`.
    """
    known = {name: beside[name] for name in BESIDE if name in beside}
    return cls.from_json(content | known if known else content)


BESIDE = ("initial_norm",)
"""The fields that files state beside the others."""

_ADDED_FIELDS = {
  "space": "effective",
  "alpha": None,
  "initial_folded_digest": None,
  "architecture": None,
  "chat_digest": None,
  "quantize": None,
  "initial_norm": None,
}
"""The values of these fields in files from before the fields existed."""

_TEXT, _COUNT = (str, type(None)), (int, type(None))
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
  "kind": str,
  "terms": list,
  "backbone_name": _TEXT,
  "backbone_fingerprint": _TEXT,
  "architecture": _TEXT,
  "quantize": _TEXT,
  "initial_digest": _TEXT,
  "initial_seed": _COUNT,
  "initial_norm": (int, float, type(None)),
  "applied_to_digest": _TEXT,
  "applied_to_seed": _COUNT,
  "mixed_origins": list,
  "steps": _COUNT,
  "method": _TEXT,
  "space": str,
  "alpha": (int, float, type(None)),
  "initial_folded_digest": _TEXT,
  "chat_digest": _TEXT,
  "versions": dict,
  "notes": list,
}


def of_leaves(names: Iterable[str]) -> Provenance:
  """Returns the provenance that the names of a prompt's leaves imply: method and space.

  The prompt has one term, of an unknown task.
  """
  held = set(names)
  method = registry.of_leaves(held)
  return Provenance(
    kind="prompt",
    terms=(Term(None, 1.0),),
    method=method.name_of(held) if method else None,
    space=method.space if method else "effective",
  )


MERGED_BY = "merged by"
"""How the note begins that states the rule of a linear merge."""


def tasks_of(terms: Iterable[Term]) -> tuple[str, ...]:
  """Returns the names of the tasks in the terms, those of merges included, each once."""
  found: dict[str, None] = {}
  for term in terms:
    names = () if term.task is None else (term.task,)
    found |= dict.fromkeys(names if term.merge is None else term.merge.tasks)
  return tuple(found)


def scale_terms(terms: Iterable[Term], factor: float) -> tuple[Term, ...]:
  """Returns the terms with every coefficient times `factor`; those at 0 are dropped."""
  return merge_terms(
    [dataclasses.replace(term, coefficient=term.coefficient * factor) for term in terms]
  )


def merge_terms(terms: Iterable[Term]) -> tuple[Term, ...]:
  """Returns one term for each task, in order of appearance, with coefficients added.

  >>> merge_terms([Term("sst2", 1.0), Term("rte", -1.0), Term("sst2", 0.5)])
  (Term(task='sst2', coefficient=1.5), Term(task='rte', coefficient=-1.0))

  docs/methods.md, (4.8). Coefficients are added exactly and rounded once (`math.fsum`). A
  sum of at most 1e-12 of its largest addend is the rounding error of decimal input, as in
  0.1 + 0.2 - 0.3, and is dropped as 0 (ours). Terms of unknown tasks are never merged, as
  the tasks may differ; those of one and the same `Merge` are.
  """
  coefficients: dict[object, list[float]] = {}
  first: dict[object, Term] = {}
  for term in terms:
    key = term.task or term.merge or object()
    coefficients.setdefault(key, []).append(term.coefficient)
    first.setdefault(key, term)
  merged = []
  for key, addends in coefficients.items():
    total = math.fsum(addends)
    if abs(total) > _RESIDUE * max(map(abs, addends)):
      merged.append(dataclasses.replace(first[key], coefficient=total))
  return tuple(merged)


def describe_terms(terms: Iterable[Term]) -> str:
  """Returns the terms for people, or "none" if there are none.

  >>> describe_terms([Term("sst2", 1.0), Term("rte", -0.5)])
  'sst2 - 0.5 rte'
  """
  text = ""
  for term in terms:
    size = abs(term.coefficient)
    name = _name(term)
    part = name if size == 1 else f"{size:g} {name}"
    if text:
      text += f" {'-' if term.coefficient < 0 else '+'} {part}"
    else:
      text = f"-{part}" if term.coefficient < 0 else part
  return text or "none"


def _name(term: Term) -> str:
  if term.merge is not None:
    parts = [describe_terms(part.terms) for part in term.merge.parts]
    more = f" of {len(parts)}" if len(parts) > 4 else ""
    return f"{errors.printable(term.merge.rule)}({errors.some(parts)}{more})"
  return "unknown task" if term.task is None else errors.printable(term.task)


def describe_precision(quantize: str | None) -> str:
  """Returns how a backbone's kernels are stored, for people."""
  return "as it is" if quantize is None else f"quantised as {quantize}"


def canonical_json(content: Any) -> str:
  """Returns JSON text with sorted keys and no spaces, so equal data give equal text."""
  return json.dumps(
    content,
    allow_nan=False,
    ensure_ascii=False,
    separators=(",", ":"),
    sort_keys=True,
  )


def _is_setting(value: Any) -> bool:
  """Returns whether a JSON value is one that an option of a merge rule can have."""
  if isinstance(value, list):
    return all(map(_is_number, value))
  return isinstance(value, str | bool | None) or _is_number(value)


def _is_number(value: Any) -> bool:
  """Returns whether a JSON value is a number that fp64 holds."""
  if type(value) is int:
    return abs(value) < 1 << 64
  return type(value) is float and math.isfinite(value)


def _require_digest(text: str) -> None:
  if not re.fullmatch("[0-9a-f]{64}", text):
    raise ValueError(f"{text!r} is not a SHA-256 in 64 hex digits")
