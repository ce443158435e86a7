"""Loads a prompt or vector from wherever one lies: a run, a checkpoint, a file.

A folder that is neither says what it is. Orbax is imported only for a checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from tpv_jax import files, identity, orbax_io
from tpv_jax.errors import UserError
from tpv_jax.vectors import store
from tpv_jax.vectors.algebra import Loaded
from tpv_jax.vectors.provenance import Provenance, Term

WHICH = ("best", "last", "initial")
"""The prompts that a run folder holds, as `<which>_prompt.safetensors`."""


def load(path: files.PathLike, which: str = "best") -> Loaded:
  """Returns the prompt or vector at `path`, its values checked to be finite fp32.

  Args:
    path: a run folder, an Orbax checkpoint `checkpoint_<step>` of the standalone runner
      or of T5X, or a file that `store.write` made.
    which: which prompt of a run folder: 'best', 'last' or 'initial'. The others hold
      only one, and it is loaded whatever this says.

  A checkpoint inside a run folder takes its provenance from the prompts of that run.
  Any other states none: its fields stay None, and it counts as one term of an unknown
  task. Of its method it says what the names of its leaves say, and not its alpha.

  Raises:
    UserError: nothing usable lies there; the message says what does.
  """
  if which not in WHICH:
    raise UserError(f"'{which}' is none of {', '.join(WHICH)}.")
  path = files.to_path(path)
  if not path.is_dir():
    leaves, provenance = store.read(path)
    return Loaded(leaves, provenance, str(path))
  if is_run_folder(path):
    return _from_run(path, which)
  return _from_checkpoint(path)


def is_run_folder(path: files.PathLike) -> bool:
  """Returns whether `path` is a folder that either runner wrote a run into."""
  path = files.to_path(path)
  return (path / "manifest.json").is_file() or any(
    _in_run(path, which).is_file() for which in WHICH
  )


def run_of(path: files.PathLike) -> files.Path | None:
  """Returns the run folder that `path` is, or is a prompt or checkpoint of, or None."""
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
  elif orbax_io.checkpoint_step(path) is not None:
    run = path.parent  # T5X's checkpoints lie in the run folder itself.
  else:
    return None
  return run if is_run_folder(run) else None


def _in_run(run: files.Path, which: str) -> files.Path:
  return run / f"{which}_prompt.safetensors"


def _from_run(run: files.Path, which: str) -> Loaded:
  file = _in_run(run, which)
  if not file.is_file():
    present = [one for one in WHICH if _in_run(run, one).is_file()]
    advice = (
      f"It has the {' and the '.join(present)} prompt: pass --which {present[0]}"
      if present
      else "Train it first, or continue the run that was stopped"
    )
    raise UserError(f"The run '{run}' has no {which} prompt{_status(run)}. {advice}.")
  leaves, provenance = store.read(file)
  name = str(run) if which == "best" else f"{run}:{which}"
  return Loaded(leaves, provenance, name)


def _status(run: files.Path) -> str:
  """Returns ' (its status is running)', or '' where the manifest does not say."""
  try:
    status = json.loads((run / "manifest.json").read_text())["status"]
  except (OSError, ValueError, KeyError, TypeError):
    return ""
  return f" (its status is '{status}')"


def _from_checkpoint(path: files.Path) -> Loaded:
  if orbax_io.state_folder(path) is None and not orbax_io.checkpoints_in(path):
    _refuse_folder(path)
  leaves = {}
  for name, leaf in orbax_io.read_leaves(path).items():
    if not identity.is_floating(leaf.dtype):
      raise UserError(
        f"Leaf '{name}' of the prompt in '{path}' is {leaf.dtype}, not floating-point. "
        "Give a checkpoint of a soft-prompt run."
      )
    store.refuse_not_finite(f"{path}: {name}", leaf.astype(np.float32))
    leaves[name] = leaf.astype(np.float32)
  run = run_of(path)
  provenance = unknown(leaves) if run is None else _of_step(run, path, leaves)
  return Loaded(leaves, provenance, str(path))


def _refuse_folder(path: files.Path) -> None:
  """Raises `UserError` about a folder without a checkpoint, saying what is in it."""
  inside = sorted(entry.name for entry in path.iterdir())
  if inside and not (path / "checkpoint").is_file():
    usable = [
      name
      for name in inside
      if name.endswith(".safetensors") or is_run_folder(path / name)
    ]
    held = f" It holds {', '.join(usable[:5])}: give one of these." if usable else ""
    raise UserError(
      f"'{path}' is neither a run folder nor an Orbax checkpoint.{held or ' Check it.'}"
    )
  if not inside:
    raise UserError(f"'{path}' is an empty folder. Give a run, a checkpoint or a file.")


def _of_step(
  run: files.Path, path: files.Path, leaves: Mapping[str, np.ndarray]
) -> Provenance:
  """Returns the provenance that a run's own prompts give one of its checkpoints."""
  for which in ("last", "best", "initial"):
    if _in_run(run, which).is_file():
      known = store.read(_in_run(run, which))[1]
      if identity.prompt_digest(leaves) == known.base_digest:
        return dataclasses.replace(known, terms=(), steps=0)
      terms = known.terms or unknown(leaves).terms
      return dataclasses.replace(
        known, terms=terms, steps=orbax_io.checkpoint_step(path)
      )
  return unknown(leaves)


def unknown(leaves: Mapping[str, np.ndarray]) -> Provenance:
  """Returns what the leaves alone say of a prompt: how it is parametrised."""
  names = set(leaves)
  method = None
  if names == {"prompt"}:
    method = "plain"
  elif "short_prompt" in names:
    method = "ept" if names & {"fusion_query", "gate_kernel"} else "dept"
  return Provenance(
    kind="prompt",
    terms=(Term(None, 1.0),),
    method=method,
    space="factor" if "short_prompt" in names else "effective",
  )
