"""Loads a prompt or vector from a run, a checkpoint or a file.

Other tools' files are read by `peft` and `arrays`; the user can add what they do not state
(`with_backbone` and the other `with_` functions). Orbax is imported only for a checkpoint.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from tpv_jax.core import files, identity
from tpv_jax.core.checks import OneOf
from tpv_jax.core.errors import UserError, option
from tpv_jax.formats import arrays, peft
from tpv_jax.io import orbax
from tpv_jax.prompts import registry
from tpv_jax.vectors import algebra, arithmetic, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance, of_leaves

WHICH = ("best", "last", "initial")
"""The prompts that a run folder holds, as `<which>_prompt.safetensors`."""

Which = Annotated[str, OneOf(WHICH)]
"""One of `WHICH`."""


def load(path: files.PathLike, which: str = "best") -> Loaded:
  """Returns the prompt or vector at `path`, its values checked to be finite fp32.

  Args:
    path: a run folder, an Orbax checkpoint `checkpoint_<step>` of the standalone runner
      or of T5X, or a file from `store.write`; of other tools, a PEFT adapter's folder
      (`peft.read`) or a file of arrays (`arrays.read`).
    which: which prompt of a run folder: 'best', 'last' or 'initial'. Everything else holds
      one prompt only, and 'last' and 'initial' are refused; see `load_any`.

  A checkpoint inside a run folder takes its provenance from the prompts of that run. Other
  checkpoints and other tools' files have no provenance: the fields stay None, except for
  the method, which the names of the leaves tell (without its alpha), and the prompt counts
  as one term of an unknown task.

  Raises:
    UserError: nothing usable lies there; the message says what does.
  """
  item = load_any(path, which)
  refuse_unread(which, [path])
  return item


def load_any(path: files.PathLike, which: str) -> Loaded:
  """Returns the prompt `which` of a run folder, or what else lies at `path`; see `load`."""
  if which not in WHICH:
    raise UserError(f"'{which}' is no prompt of a run. Choose {' or '.join(WHICH)}.")
  item = _load(path, which)
  store.refuse_shapes(item.leaves, item.name)
  return item


def refuse_unread(which: str, given: Sequence[Any]) -> None:
  """Raises `UserError` if `which` is not the default and no run folder was given.

  Args:
    which: see `load`.
    given: the paths for which it was given; anything else is no run folder.
  """
  paths = [one for one in given if isinstance(one, str | os.PathLike)]
  if which == "best" or any(map(is_run_folder, paths)):
    return
  found = f"'{paths[0]}' is none" if len(paths) == 1 else "none was given"
  raise UserError(
    f"{option('which', which)} says which prompt of a run folder is meant, and {found}. "
    "Leave it out."
  )


def save(path: files.PathLike, item: Loaded, overwrite: bool = False) -> None:
  """Writes a prompt or vector with its provenance to a `.safetensors` file.

  Raises:
    UserError: the file exists or has another suffix, or `item` is not a valid prompt.
  """
  store.write(path, item.leaves, item.provenance, overwrite)


def _load(path: files.PathLike, which: str) -> Loaded:
  """Returns the prompt or vector at `path`, without checks of its shapes."""
  if peft.is_adapter(path):
    return peft.read(path)
  if arrays.holds_arrays(path):
    return arrays.read(path)
  path = files.to_path(path)
  if not path.is_dir():
    leaves, provenance = store.read(path)
    return Loaded(leaves, provenance, str(path))
  if is_run_folder(path):
    return _from_run(path, which)
  return _from_checkpoint(path)


def is_run_folder(path: files.PathLike) -> bool:
  """Returns whether `path` is the folder of a run, of either runner."""
  path = files.to_path(path)
  return (path / "manifest.json").is_file() or any(
    _in_run(path, which).is_file() for which in WHICH
  )


def run_of(path: files.PathLike) -> files.Path | None:
  """Returns the run folder that `path` is or lies in as a prompt or checkpoint, or None."""
  path = files.to_path(path)
  if is_run_folder(path):
    return path
  path = files.absolute(path)
  if path.name == "state":
    path = path.parent
  if path.name in {_in_run(path, which).name for which in WHICH}:
    run = path.parent
  elif path.parent.name == "checkpoints":
    run = path.parent.parent
  elif orbax.checkpoint_step(path) is not None:
    run = path.parent  # T5X's checkpoints lie in the run folder itself.
  else:
    return None
  return run if is_run_folder(run) else None


def _in_run(run: files.Path, which: str) -> files.Path:
  return run / f"{which}_prompt.safetensors"


def _manifest(run: files.PathLike) -> dict[str, Any]:
  """Returns the manifest of a run, or {} if it cannot be read."""
  try:
    content = files.parse_json(files.read_bytes(files.to_path(run) / "manifest.json"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _from_run(run: files.Path, which: str) -> Loaded:
  file, manifest = _in_run(run, which), _manifest(run)
  status = manifest.get("status")
  its_status = "" if status is None else f" (its status is '{status}')"
  if not file.is_file():
    present = [one for one in WHICH if _in_run(run, one).is_file()]
    advice = (
      f"It has the {' and the '.join(present)} prompt: pass {option('which', present[0])}"
      if present
      else "Train it first, or continue the run that was stopped"
    )
    raise UserError(f"The run '{run}' has no {which} prompt{its_status}. {advice}.")
  leaves, provenance = store.read(file)
  # Until a run ends, its manifest states the digest of the initial prompt only.
  stated, found = manifest.get(f"{which}_digest"), identity.prompt_digest(leaves)
  if stated not in (None, found):
    raise UserError(
      f"'{file}' is not the {which} prompt of its run: the run's manifest.json states "
      f"the digest {str(stated)[:12]}…, and this one has {found[:12]}…. Restore the run's "
      "own prompt from a copy, or move this one to another folder, where it can be read."
    )
  if which != "initial" and status not in (None, "finished"):
    note = f"its run had not finished when it was read{its_status}"
    provenance = dataclasses.replace(provenance, notes=(*provenance.notes, note))
  name = str(run) if which == "best" else f"{run}:{which}"
  return Loaded(leaves, provenance, name)


def _from_checkpoint(path: files.Path) -> Loaded:
  if orbax.state_folder(path) is None and not orbax.checkpoints_in(path):
    arrays_there = arrays.npy_files(path)
    if len(arrays_there) == 1:
      return arrays.read(path / arrays_there[0])
    _refuse_folder(path)
  leaves = {}
  saved, steps = _saved_prompt(path)
  for name, leaf in saved.items():
    if not identity.is_floating(leaf.dtype):
      raise UserError(
        f"Leaf '{name}' of the prompt in '{path}' is {leaf.dtype}, not floating-point. "
        "Give a checkpoint of a soft-prompt run."
      )
    store.refuse_not_finite(f"{path}: {name}", leaf.astype(np.float32))
    leaves[name] = leaf.astype(np.float32)
  _refuse_bank(path, leaves)
  run = run_of(path)
  alone = dataclasses.replace(of_leaves(leaves), steps=steps)
  provenance = alone if run is None else _of_step(run, path, leaves) or alone
  return Loaded(leaves, provenance, str(path))


def _saved_prompt(path: files.Path) -> tuple[dict[str, np.ndarray], int | None]:
  """Returns the leaves of the prompt in a checkpoint, and its steps if they are known.

  google-research/prompt-tuning keeps the prompt as one array in the encoder, and its step
  includes those of pre-training.
  """
  try:
    return orbax.read_leaves(path), orbax.checkpoint_step(path)
  except UserError:
    with contextlib.suppress(UserError):
      theirs = orbax.read_leaves(path, "target/encoder/prompt")
      if len(theirs) == 1:
        return {"prompt": next(iter(theirs.values()))}, None
    raise


def _refuse_folder(path: files.Path) -> None:
  """Raises `UserError` about a folder without a checkpoint, saying what is in it."""
  inside = sorted(entry.name for entry in path.iterdir())
  if inside and not (path / "checkpoint").is_file():
    usable = [
      name
      for name in inside
      if name.endswith((".safetensors", ".npy", ".npz"))
      or is_run_folder(path / name)
      or peft.is_adapter(path / name)
    ]
    usable += arrays.npy_files(path)
    held = f" It holds {', '.join(usable[:5])}: give one of these." if usable else ""
    raise UserError(
      f"'{path}' is no run folder, Orbax checkpoint or PEFT adapter.{held or ' Check it.'}"
    )
  if not inside:
    raise UserError(f"'{path}' is an empty folder. Give a run, a checkpoint or a file.")


def _refuse_bank(path: files.Path, leaves: Mapping[str, np.ndarray]) -> None:
  """Raises `UserError` if a checkpoint holds the stacked prompts of a bank under T5X."""
  prompt = _rows(leaves)
  if prompt is not None and prompt.ndim == 3:
    raise UserError(
      f"'{path}' holds the {len(prompt)} prompts of a bank. Each prompt has its own folder "
      "beside the bank's checkpoints: give one of those."
    )


def _of_step(
  run: files.Path, path: files.Path, leaves: Mapping[str, np.ndarray]
) -> Provenance | None:
  """Returns the provenance of a run's checkpoint, from the run's own prompts, or None.

  Raises:
    UserError: the checkpoint lies in the run's folder but is of another run.
  """
  step = orbax.checkpoint_step(path)
  stated, known_run = orbax.run_of_checkpoint(path), _manifest(run).get("run")
  if stated is not None and known_run not in (None, stated):
    raise _foreign(run, path, f"it states the run {stated[:12]}…")
  for which in ("last", "best", "initial"):
    if not _in_run(run, which).is_file():
      continue
    there, known = store.read(_in_run(run, which))
    shapes = [{name: leaf.shape for name, leaf in x.items()} for x in (there, leaves)]
    if name := identity.first_difference(*shapes):
      raise _foreign(run, path, f"its {name} is {shapes[1].get(name)}")
    digest = identity.prompt_digest(leaves)
    same_step = which != "initial" and known.steps == step
    if stated is None and same_step and digest != identity.prompt_digest(there):
      raise _foreign(run, path, f"the {which} prompt of its step is another one")
    if digest == known.base_digest:
      return dataclasses.replace(known, terms=(), steps=0)
    terms = known.terms or of_leaves(leaves).terms
    return dataclasses.replace(known, terms=terms, steps=step)
  return None


def _foreign(run: files.Path, path: files.Path, why: str) -> UserError:
  return UserError(
    f"The checkpoint '{path}' lies in the folder of the run '{run}' but is not of that run: "
    f"{why}. Move it elsewhere, where it is read without that run's provenance."
  )


class Backbone(NamedTuple):
  """What is known of a backbone that the user names.

  Attributes:
    fingerprint: see `identity.backbone_fingerprint`.
    name: for people.
    width: of its tokens; None if only the fingerprint is known.
    architecture: see `Provenance`.
  """

  fingerprint: str
  name: str | None = None
  width: int | None = None
  architecture: str | None = None


def with_backbone(item: Loaded, known: Backbone) -> Loaded:
  """Returns the item with its backbone filled in where it states none.

  Raises:
    UserError: it states another backbone, or its width is not that of `known`.
  """
  stated, width = item.provenance.backbone_fingerprint, width_of(item.leaves)
  if stated not in (None, known.fingerprint):
    raise UserError(
      f"'{item.name}' states another backbone ({stated[:12]}…) than --backbone "
      f"({known.fingerprint[:12]}…). Leave out --backbone."
    )
  if None not in (width, known.width) and width != known.width:
    raise UserError(
      f"'{item.name}' has rows of {width} features, and the tokens of the backbone "
      f"'{known.name or known.fingerprint[:12]}' have {known.width}, so it was not tuned "
      "on that backbone. Give --backbone the one that it was tuned on."
    )
  provenance = dataclasses.replace(
    item.provenance,
    backbone_fingerprint=known.fingerprint,
    backbone_name=item.provenance.backbone_name or known.name,
    architecture=item.provenance.architecture or known.architecture,
  )
  return dataclasses.replace(item, provenance=provenance)


def width_of(leaves: Mapping[str, np.ndarray]) -> int | None:
  """Returns the features of a prompt's or vector's rows."""
  rows = _rows(leaves)
  return None if rows is None or rows.ndim != 2 else rows.shape[1]


def _rows(leaves: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """Returns the rows that stand before a source."""
  method = registry.of_leaves(leaves)
  return None if method is None else leaves[method.rows]


def with_alpha(item: Loaded, alpha: float) -> Loaded:
  """Returns parameters with the user's alpha filled in where they state none.

  Raises:
    UserError: it is not finite, they state another one, or `item` has none: it is a plain
      or folded prompt, or a vector of such.
  """
  known = item.provenance
  if known.space == "effective":
    raise UserError(
      f"'{item.name}' has no alpha: only the parameters of DePT and EPT have one, before "
      "they are folded. Leave out --alpha."
    )
  if known.alpha == alpha:
    return item
  if not math.isfinite(alpha):
    raise UserError(f"Alpha is {alpha}. Give a finite number, such as DePT's 8.")
  if known.alpha is not None:
    raise UserError(
      f"'{item.name}' states another alpha ({known.alpha:g}) than --alpha ({alpha:g}). "
      "Leave out --alpha."
    )
  note = f"that its alpha is {alpha:g} is the user's word"
  return dataclasses.replace(
    item, provenance=dataclasses.replace(known, alpha=alpha, notes=(*known.notes, note))
  )


def with_initial(item: Loaded, initial: Loaded) -> Loaded:
  """Returns a prompt with the user's initial prompt filled in where it states none.

  If `item` is the initial prompt itself, it gets no task.

  Raises:
    UserError: `item` is a vector, states another initial prompt, or differs from `initial`
      in method, shapes, alpha or backbone; `initial` is a vector.
  """
  known, start = item.provenance, identity.prompt_digest(initial.leaves)
  if known.kind != "prompt" or known.initial_digest not in (None, start):
    stated = known.initial_digest
    raise UserError(
      f"'{item.name}' is a {known.kind} that states its origin itself (initial prompt "
      f"{f'{stated[:12]}…' if stated else 'unknown'}), and '{initial.name}' is "
      f"{start[:12]}…. Leave out --initial."
    )
  other = initial.provenance
  if other.kind != "prompt":
    raise UserError(
      f"'{initial.name}' is a {other.kind}, and a run starts from a prompt. Give "
      "--initial the initial prompt, or leave it out."
    )
  ours, theirs = known.backbone_fingerprint, other.backbone_fingerprint
  if ours is not None and theirs is not None and ours != theirs:
    raise UserError(
      f"'{initial.name}' belongs to the backbone {theirs[:12]}…, and '{item.name}' to "
      f"{ours[:12]}…. Give --initial the "
      "prompt that this one was tuned from, or leave it out."
    )
  arithmetic.refuse_unequal(
    item.leaves, initial.leaves, f"'{item.name}'", f"'{initial.name}'"
  )
  initial = initial if known.alpha is None else with_alpha(initial, known.alpha)
  if known.initial_digest is not None:
    return item
  known = dataclasses.replace(
    known,
    initial_digest=start,
    initial_seed=_seed(initial, start),
    notes=(
      *known.notes,
      f"that it was tuned from the initial prompt {start[:12]} is the user's word",
    ),
  )
  if known.alpha is not None:
    folded = algebra.fold(initial).leaves
    known = dataclasses.replace(
      known, initial_folded_digest=identity.prompt_digest(folded)
    )
  if identity.prompt_digest(item.leaves) == start:
    known = dataclasses.replace(known, terms=(), steps=0, notes=item.provenance.notes)
  return dataclasses.replace(item, provenance=known)


def _seed(initial: Loaded, digest: str) -> int | None:
  """Returns the seed of an initial prompt, or None if it is not known to be one."""
  known = initial.provenance
  return known.initial_seed if known.initial_digest == digest else None


def with_task(item: Loaded, task: str) -> Loaded:
  """Returns a prompt or vector with its one unknown task named.

  Raises:
    UserError: it states other tasks.
  """
  known = dataclasses.replace(item.provenance, terms=algebra.named(item, task))
  return dataclasses.replace(item, provenance=known)
