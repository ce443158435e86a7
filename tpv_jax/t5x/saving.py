"""The files of a T5X run: checkpoints of the trained leaves, and portable prompt files.

    MODEL_DIR/initial_prompt.safetensors     before the first step
    MODEL_DIR/prompts/prompt_<step>.safetensors   at each save
    MODEL_DIR/last_prompt.safetensors        the newest of them
    MODEL_DIR/best_prompt.safetensors        by a validation metric (`BestPrompt`)
    MODEL_DIR/checkpoint_<step>/             T5X's own, without the backbone

In a bank, each prompt has such files in MODEL_DIR/<member>/, and MODEL_DIR/bank.json lists
the prompts. So `tpv` and the standalone runner read a T5X run as a run folder. Nothing of
T5X is imported.
"""

import dataclasses
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import processes
from tpv_jax.model import PROMPT
from tpv_jax.runs import run_folder, run_settings
from tpv_jax.t5x.bank import Member
from tpv_jax.training import prompt_files
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, describe_terms, of_leaves

INITIAL = "initial_prompt.safetensors"
LAST = "last_prompt.safetensors"
BEST = "best_prompt.safetensors"
BANK = "bank.json"


def versions() -> dict[str, str]:
  """Returns the versions that a T5X run's numbers depend on."""
  try:
    return run_folder.versions() | {"t5x": importlib.metadata.version("t5x")}
  except importlib.metadata.PackageNotFoundError:
    return run_folder.versions() | {"t5x": "from a folder"}


def write(
  folder: str, name: str, leaves: Mapping[str, np.ndarray], provenance: Provenance
) -> None:
  """Writes a prompt's file into a folder, made if needed, if this process is the writer."""
  if not processes.is_writer():
    return
  path = files.to_path(folder) / name
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_bytes(path, store.encode(leaves, provenance))


def read_provenance(folder: str, name: str) -> Provenance | None:
  """Returns the provenance in a file that `write` wrote, None without the file."""
  path = files.to_path(folder) / name
  return store.read(path)[1] if path.exists() else None


class KeepOnlyTrainable:
  """A save function of T5X that leaves the frozen backbone out of a checkpoint."""

  def __init__(self, trainable: str = r"prompt/.*"):
    """Keeps the prompt and the leaves whose whole path `trainable` matches."""
    self.trainable = trainable

  def __call__(self, state_dict: Any, parameter_infos: Any) -> tuple[Any, Any]:
    """Returns both trees with only the kept leaves under 'target'."""
    return self._filter(state_dict), self._filter(parameter_infos)

  def _filter(self, tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
      path: leaf
      for path, leaf in identity.flatten(tree["target"]).items()
      if path.startswith(f"{PROMPT}/") or re.fullmatch(self.trainable, path)
    }
    return {**tree, "target": identity.unflatten(kept)}


class SavePrompt:
  """A save function of T5X that also writes each saved prompt as a portable file.

  The provenance is that of the standalone runner's prompts: see `prompt_files.tuned`.
  """

  def __init__(
    self,
    model_dir: str,
    task: str | None,
    members: Sequence[Member] | None = None,
    vocabulary: Vocabulary | None = None,
    trainable: str = r"prompt/.*",
  ):
    """Writes into `model_dir`.

    Args:
      model_dir: the run's folder.
      task: names the prompt's term.
      members: of a bank: each is written into its folder, with its task.
      vocabulary: of the texts; its chat template is noted.
      trainable: matches what is trained, as in `KeepOnlyTrainable`.

    Raises:
      UserError: the folder has a prompt of another task or initial prompt.
    """
    check_folders(model_dir, task, members)
    self.model_dir = model_dir
    self.task = task
    self.members = members
    self.training = _Training(vocabulary, trainable)

  def __call__(self, state_dict: Any, parameter_infos: Any) -> tuple[Any, Any]:
    """Writes the prompt of `state_dict`; returns both trees as they are."""
    step = int(processes.on_host(state_dict["state"]["step"]))
    leaves = prompt_leaves(state_dict["target"])  # All hosts take part.
    if step > 0 and processes.is_writer():
      for one in _prompts(self.model_dir, self.task, self.members, leaves):
        provenance = self.training.provenance(one, step, state_dict["target"])
        for name in (f"prompts/prompt_{step}.safetensors", LAST):
          write(one.folder, name, one.leaves, provenance)
    return state_dict, parameter_infos


class Evaluated(dict[str, Any]):
  """The metrics of each task, and the prompt that was evaluated.

  T5X runs actions on process 0 only, which could not collect a prompt that is cut over
  several processes.
  """

  def __init__(
    self, metrics_by_task: Mapping[str, Any], prompt: Mapping[str, np.ndarray]
  ):
    """Keeps the metrics by task, and the prompt's leaves, whole on this process."""
    super().__init__(metrics_by_task)
    self.prompt = prompt


class BestPrompt:
  """An action of T5X's TRAIN_EVAL that keeps the best prompt by a validation metric.

  The best value so far is a note in the file's provenance, so that a continued run knows
  it; a best prompt from steps that are trained again is dropped.
  """

  def __init__(
    self,
    model_dir: str,
    task: str | None,
    metric: Literal["loss", "accuracy", "exact_match"] = "loss",
    higher_is_better: bool | None = None,
    members: Sequence[Member] | None = None,
    vocabulary: Vocabulary | None = None,
    trainable: str = r"prompt/.*",
  ):
    """Watches `metric` of the model, averaged over T5X's validation tasks.

    Args:
      model_dir: the run's folder.
      task: names the prompt's term.
      metric: of the model; accuracy is that of target tokens.
      higher_is_better: by default True except for the loss.
      members: of a bank: each has its best prompt, by its own metric, in its folder.
      vocabulary: as for `SavePrompt`.
      trainable: as for `SavePrompt`.

    Raises:
      UserError: the folder has a prompt of another task or initial prompt.
    """
    check_folders(model_dir, task, members)
    self.model_dir = model_dir
    self.task = task
    self.members = members
    self.training = _Training(vocabulary, trainable)
    self.metric = metric
    self.sign = 1.0 if higher_is_better is None and metric != "loss" else -1.0
    if higher_is_better is not None:
      self.sign = 1.0 if higher_is_better else -1.0

  def run(self, train_state: Any, metrics_by_task: Mapping[str, Any]) -> bool:
    """Writes each prompt that is the best so far; never asks T5X to stop.

    Raises:
      UserError: the metrics do not come from `training.Trainer.eval`.
    """
    if not isinstance(metrics_by_task, Evaluated):
      raise UserError(
        "BestPrompt needs the prompt beside the metrics, which training.Trainer gives to "
        "actions of 'TRAIN_EVAL' only. Name it there, and leave train.trainer_cls as "
        "gin_configs/t5x/train.gin has it."
      )
    step = int(processes.on_host(train_state.step))
    prompts = _prompts(self.model_dir, self.task, self.members, metrics_by_task.prompt)
    for one in prompts:
      values = [
        float(np.asarray(metrics[self.metric + one.suffix].value))
        for metrics in metrics_by_task.values()
      ]
      value = sum(values) / len(values)
      best = self._best(one.folder, step)
      if math.isfinite(value) and (best is None or self.sign * (value - best) > 0):
        provenance = self.training.provenance(one, step, train_state.params)
        note = f"best {self.metric} on validation: {value!r}"
        provenance = dataclasses.replace(provenance, notes=(*provenance.notes, note))
        write(one.folder, BEST, one.leaves, provenance)
    return False

  def _best(self, folder: str, step: int) -> float | None:
    provenance = read_provenance(folder, BEST)
    if provenance is None:
      return None
    found = re.fullmatch(
      rf"best {self.metric} on validation: (\S+)", "".join(provenance.notes[-1:])
    )
    return float(found[1]) if found and (provenance.steps or 0) < step else None


class _Prompt(NamedTuple):
  """A prompt to save: its folder, its task, the suffix of its metrics' names."""

  folder: str
  task: str
  suffix: str
  leaves: dict[str, np.ndarray]


class _Training(NamedTuple):
  """What a run's trained prompts have in common: see `SavePrompt` for the fields."""

  vocabulary: Vocabulary | None
  trainable: str

  def provenance(
    self, prompt: _Prompt, step: int, parameters: Mapping[str, Any]
  ) -> Provenance:
    """Returns the provenance of a trained prompt: its start's, with what was trained.

    Args:
      prompt: as it is after `step` steps.
      step: counted from the start.
      parameters: all of the model's; only their paths are read.
    """
    start = read_provenance(prompt.folder, INITIAL) or dataclasses.replace(
      of_leaves(prompt.leaves),
      notes=(f"{INITIAL} was lost, and with it what it said",),
    )
    chat = None if self.vocabulary is None else self.vocabulary.chat
    return prompt_files.tuned(
      dataclasses.replace(start, steps=step, versions=versions()),
      prompt.task,
      chat_digest=None if chat is None else chat.digest,
      tunes_backbone=any(
        re.fullmatch(self.trainable, path) and not path.startswith(f"{PROMPT}/")
        for path in identity.flatten(parameters)
      ),
    )


def member_folder(model_dir: str, member: Member) -> str:
  """Returns the folder of a bank's prompt within the run's."""
  return str(files.to_path(model_dir) / member.name)


def described(members: Sequence[Member]) -> list[dict[str, Any]]:
  """Returns the content of BANK: a bank's prompts, in their order."""
  return [dataclasses.asdict(member) for member in members]


def write_members(model_dir: str, members: Sequence[Member] | None) -> None:
  """Writes BANK, which lists the prompts in the order of the checkpoints' leading axis.

  Without `members`, removes the file of a bank that ended before its first step.
  """
  if not processes.is_writer():
    return
  path = files.to_path(model_dir) / BANK
  if members is None:
    path.unlink(missing_ok=True)
  else:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, described(members))


def read_members(model_dir: str) -> list[dict[str, Any]] | None:
  """Returns what `write_members` wrote, None in a run of one prompt.

  Raises:
    UserError: the file is damaged.
  """
  path = files.to_path(model_dir) / BANK
  if not path.exists():
    return None
  try:
    return [dict(**member) for member in files.parse_json(files.read_bytes(path))]
  except (ValueError, TypeError) as error:
    raise UserError(
      f"Cannot read '{path}', which names the prompts of the bank's checkpoints "
      f"({error}). Restore it from a copy, or choose another MODEL_DIR."
    ) from error


def first_other(
  there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]
) -> str:
  """Returns how the first prompt of a bank that is another one differs, '' if none does."""
  for place, (one, other) in enumerate(zip(there, here, strict=False)):
    saved = {"settings_version": run_settings.VERSION, "settings": one}
    now = run_settings.Settings(other, run_settings.defaults_of(Member))
    if told := run_settings.difference(saved, now):
      return f"; prompt {place} has another {told}"
  return ""


def check_folders(
  model_dir: str, task: str | None, members: Sequence[Member] | None
) -> None:
  """Raises `UserError` if a run's folders have prompts of another task or start."""
  folders = [(model_dir, task)]
  if members is not None:
    folders = [(member_folder(model_dir, one), one.task) for one in members]
  for folder, due in folders:
    initial = read_provenance(folder, INITIAL)
    for name in (LAST, BEST):
      known = read_provenance(folder, name)
      if known is None:
        continue
      stated = [term.task for term in known.terms]
      if stated != [due]:
        raise UserError(
          f"'{folder}' has a {name} of {describe_terms(known.terms)}, and this run trains "
          f"{due}. Give that run's task, or choose another MODEL_DIR."
        )
      if initial is not None and initial.initial_digest != known.initial_digest:
        raise UserError(
          f"'{folder}' has a {name} that was tuned from the initial prompt "
          f"{str(known.initial_digest)[:12]}…, and an {INITIAL} which is "
          f"{str(initial.initial_digest)[:12]}…: one is of another run. Restore the run's "
          "own from a copy, or choose another MODEL_DIR."
        )


def check_start(folder: str, start: Provenance) -> None:
  """Raises `UserError` if the run in a folder started from another prompt than `start`."""
  known = read_provenance(folder, INITIAL)
  if known is not None and known.initial_digest != start.initial_digest:
    raise UserError(
      f"The run in '{folder}' started from the initial prompt "
      f"{str(known.initial_digest)[:12]}… (seed {known.initial_seed}); this one would "
      f"start from {str(start.initial_digest)[:12]}… (seed {start.initial_seed}). Give "
      "that run's INITIAL_PROMPT and INITIAL_SEED, or choose another MODEL_DIR."
    )


def check_saved(folder: str, step: int, leaves: Mapping[str, np.ndarray]) -> None:
  """Raises `UserError` if a restored prompt differs from the file saved with it."""
  path = files.to_path(folder) / "prompts" / f"prompt_{step}.safetensors"
  if not path.exists():
    return
  saved, found = (identity.prompt_digest(x) for x in (store.read(path)[0], leaves))
  if saved != found:
    raise UserError(
      f"The checkpoint of step {step} holds the prompt {found[:12]}…, and '{path}', which "
      f"was saved with it, {saved[:12]}…: one is of another run. Delete that checkpoint to "
      "continue from the one before it, or choose another MODEL_DIR."
    )


def _prompts(
  model_dir: str,
  task: str | None,
  members: Sequence[Member] | None,
  leaves: Mapping[str, np.ndarray],
) -> list[_Prompt]:
  if members is None:
    assert task is not None
    return [_Prompt(model_dir, task, "", dict(leaves))]
  return [
    _Prompt(
      member_folder(model_dir, member),
      member.task,
      f"/{member.name}",
      {name: leaf[place] for name, leaf in leaves.items()},
    )
    for place, member in enumerate(members)
  ]


def prompt_leaves(target: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the whole leaves of the prompt; all processes must call this."""
  return {
    path.removeprefix(f"{PROMPT}/"): processes.on_host(leaf).astype(np.float32)
    for path, leaf in identity.flatten(target).items()
    if path.startswith(f"{PROMPT}/")
  }
