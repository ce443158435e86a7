"""Where the parameters of a T5X job come from: backbone, prompt, a resumed state.

T5X makes the states of a job with a `TrainStateInitializer`. This one keeps the frozen
backbone out of T5X's checkpoints, in both directions: a run's checkpoint holds only the
trained leaves, and the backbone always comes from its own files.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.sharding import NamedSharding
from t5x import train_state as train_state_lib
from t5x import utils

from tpv_jax.backbones import loading, quantization
from tpv_jax.core import files, identity
from tpv_jax.core.checks import Seed
from tpv_jax.core.errors import UserError
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices import partitioning, processes
from tpv_jax.evaluation import candidates
from tpv_jax.formats import gguf, hugging_face
from tpv_jax.formats.sources import Which
from tpv_jax.io import orbax
from tpv_jax.model import PROMPT, SoftPromptModel
from tpv_jax.prompts import equations, plain
from tpv_jax.prompts.equations import Folded
from tpv_jax.t5x import datasets, preemption, saving
from tpv_jax.t5x.bank import Bank
from tpv_jax.t5x.mesh import Partitioner
from tpv_jax.t5x.optimizer import replace_leaves
from tpv_jax.training import initial
from tpv_jax.training.initial import Initial
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded

SUBJECT = "prompt.safetensors"
"""The prompt that an evaluation or inference job uses, in its output folder."""


class Initializer(utils.TrainStateInitializer):
  """Makes the states of train, eval and infer; `train_state_initializer_cls` in gin.

  A new training run starts from the backbone and from `initial_prompt(table, seed)`, at
  step 0, and writes that prompt to `model_dir`. A continued run, an evaluation and an
  inference job restore a checkpoint that holds only trained leaves. Each prompt of a bank
  is drawn by its own seed and written to its own folder.
  """

  def __init__(
    self,
    optimizer_def: Any,
    init_fn: Callable[..., Any],
    input_shapes: Mapping[str, Any],
    partitioner: Any,
    input_types: Mapping[str, Any] | None = None,
    *,
    backbone: str,
    vocabulary: Vocabulary | None = None,
    initial_prompt: Initial | None = None,
    initial_seed: Seed = 0,
    model_dir: str | None = None,
    output_dir: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
  ):
    """Takes what T5X passes, and from gin:

    Args:
      backbone: what `loading.load_backbone` takes, or any checkpoint that T5X restores
        (also its layout from before Orbax). A host reads only its devices' part of a
        checkpoint, but all of a `.safetensors` file or a folder of Hugging Face, leaf by
        leaf.
      vocabulary: checked against the backbone's.
      initial_prompt: a function of `training.initial`; required to train a prompt.
      initial_seed: of the initial prompt.
      model_dir: the folder of a training run.
      output_dir: the folder of an evaluation or inference job.
      dtype: the backbone's on the devices.

    Raises:
      UserError: the backbone does not fit the network, the content of `model_dir` does
        not fit the prompt or bank, or the data do not fit the model.
    """
    if not isinstance(partitioner, Partitioner):
      raise UserError(
        f"The partitioner is {type(partitioner).__name__}, which silently replicates axes "
        "without a rule. Leave `partitioner = @mesh.partitioner()` as in our gin files, "
        "and set MODEL_PARALLEL, MODEL_PARALLEL_SUBMESH and AXIS_RULES."
      )
    self.model: SoftPromptModel = init_fn.__self__  # type: ignore[attr-defined]
    if mode := quantization.mode_of(self.model.network):
      raise UserError(
        f"QUANTIZE = '{mode}': T5X's states hold plain arrays only, so a quantised backbone "
        "runs under 'tpv train', 'tpv bank', 'tpv eval' and 'tpv infer'. Set QUANTIZE = "
        "None, or use them."
      )
    partitioner.units = partitioning.units_of(self.model)
    super().__init__(
      optimizer_def=optimizer_def,
      init_fn=init_fn,
      input_shapes=input_shapes,
      partitioner=partitioner,
      input_types=input_types,
    )
    self.global_train_state_shape: Any
    self.backbone = str(backbone)
    if self.backbone not in loading.NAMES:
      self.backbone = str(files.absolute(loading.located(backbone)))
    self.vocabulary = vocabulary
    self.initial_prompt = initial_prompt
    self.initial_seed = initial_seed
    self.model_dir = model_dir
    self.output_dir = output_dir
    self.dtype = jnp.dtype(dtype)
    self.members = self.model.members if isinstance(self.model, Bank) else None
    self._whole = self.global_train_state_shape
    self._shapes = identity.flatten(self._whole.params)
    self._axes = identity.flatten(self.train_state_axes.params)
    self._noted = (
      {}
      if self.backbone in loading.NAMES
      else loading.beside(files.to_path(self.backbone))
    )
    self._check_backbone()
    self._check_model_dir()
    self._check_data(input_shapes)
    self._kept = {path for path in self._shapes if path.startswith(f"{PROMPT}/")}
    if optimizer_def is not None:
      self._kept |= set(self.model.split(self._whole.params)[0])
    # T5X saves and restores with this: the same state without the frozen backbone.
    self.global_train_state_shape = _WithoutFrozen(
      self._whole, self._kept, self._complete
    )

  def from_scratch(self, init_rng: jax.Array) -> Any:
    """Returns the state at step 0: the backbone, the initial prompt, fresh moments."""
    del init_rng  # The initial prompt has a seed of its own.
    leaves, name, fingerprint = self._load_backbone()
    if self.model.prompt is not None:
      drawn = self._draw_prompt(leaves, name, fingerprint)
      for leaf, value in drawn.items():
        leaves[f"{PROMPT}/{leaf}"] = self._put(f"{PROMPT}/{leaf}", value)
    params = flax.core.freeze(identity.unflatten(leaves))
    params_axes = self._whole.params_axes
    create = self._partitioner.partition(
      lambda params: train_state_lib.FlaxOptimTrainState.create(
        self.model.optimizer_def,
        flax.core.freeze({"params": params, "params_axes": params_axes}),
      ),
      in_axis_resources=(self.train_state_axes.params,),
      out_axis_resources=self.train_state_axes,
      donate_argnums=(0,),
    )
    return create(params)

  def _complete(self, state: Any) -> Any:
    """Returns a restored state with the backbone's leaves in place of their shapes.

    Raises:
      UserError: the state is of another run or backbone, or its steps were rounded.
    """
    self._check_restored(state)
    leaves, name, fingerprint = self._load_backbone()
    self._check_same_backbone(name, fingerprint)
    if self.model_dir is not None:
      self._check_same_run(state, leaves, name, fingerprint)
    frozen = {path: leaf for path, leaf in leaves.items() if path not in self._kept}
    state = state.replace_params(replace_leaves(state.params, frozen))
    step = int(processes.on_host(state.step))
    if self.model_dir is None or step != datasets.steps_done(self.model_dir):
      return state
    told = preemption.last_boundary(step)
    return preemption.at_step(state, told, self._partitioner.mesh)

  def _check_restored(self, state: Any) -> None:
    """Raises `UserError` if T5X restored a state that this job cannot use."""
    kind = jnp.asarray(state.step).dtype
    if kind in (jnp.bfloat16, jnp.float16):
      raise UserError(
        f"T5X restored the checkpoint in {kind}, which rounds steps and prompts. Leave the "
        "dtype of SaveCheckpointConfig and RestoreCheckpointConfig at 'float32'; "
        "BACKBONE_DTYPE and DTYPE are those of the model."
      )
    if self.model_dir is not None and not orbax.checkpoints_in(self.model_dir):
      raise UserError(
        f"T5X restored a checkpoint that is not of the run in '{self.model_dir}', so the "
        "origin of its prompt is unknown. Leave CheckpointConfig.restore None, and start "
        "from that prompt: INITIAL_PROMPT = @initial.from_file."
      )

  def _folders(self) -> list[str]:
    """Returns the folder of each prompt of a training run."""
    assert self.model_dir is not None
    if self.members is None:
      return [self.model_dir]
    return [saving.member_folder(self.model_dir, member) for member in self.members]

  def _check_same_backbone(self, name: str, fingerprint: str) -> None:
    """Raises `UserError` if the restored prompt belongs to another backbone."""
    provenance = None
    if self.model_dir is not None:
      provenance = saving.read_provenance(self._folders()[0], saving.INITIAL)
    elif self.output_dir is not None:
      provenance = saving.read_provenance(self.output_dir, SUBJECT)
    known = None if provenance is None else provenance.backbone_fingerprint
    if provenance is not None and known is not None and known != fingerprint:
      raise UserError(
        f"The prompt was trained on the backbone '{provenance.backbone_name}' "
        f"({known[:12]}…), not on '{name}' ({fingerprint[:12]}…). Choose that backbone."
      )

  def _check_same_run(
    self, state: Any, leaves: Mapping[str, jax.Array], name: str, fingerprint: str
  ) -> None:
    """Raises `UserError` if a restored prompt is not of the run in its folder.

    The folder's initial prompt must be the one that this run would start from, and the
    prompt that was saved as a file at this step must be the restored one.
    """
    restored = {
      path.removeprefix(f"{PROMPT}/"): processes.on_host(leaf)  # All hosts take part.
      for path, leaf in identity.flatten(state.params).items()
      if path.startswith(f"{PROMPT}/")
    }
    table = processes.on_host(leaves[self.model.network.TABLE]).astype(np.float32)
    step = int(processes.on_host(state.step))
    for place, folder in enumerate(self._folders()):
      seed = self.members[place].initial_seed if self.members else self.initial_seed
      if restored and self.initial_prompt is not None:
        start = initial.draw(
          self.model.prompt,
          self.initial_prompt,
          table,
          seed,
          name,
          fingerprint,
          self.model.network,
        )
        saving.check_start(folder, start.provenance)
      own = {k: x[place] for k, x in restored.items()} if self.members else restored
      saving.check_saved(folder, step, own)

  def _draw_prompt(
    self, leaves: Mapping[str, jax.Array], name: str, fingerprint: str
  ) -> Mapping[str, np.ndarray]:
    if self.initial_prompt is None or self.model_dir is None:
      raise UserError(
        "A new run needs INITIAL_PROMPT, the prompt it starts from, and MODEL_DIR. "
        "Include a file of gin_configs/prompts/, such as plain.gin."
      )
    table = processes.on_host(leaves[self.model.network.TABLE]).astype(np.float32)
    saving.write_members(self.model_dir, self.members)
    if self.members is None:
      return self._draw(table, name, fingerprint, self.initial_seed, self.model_dir)
    drawn = [
      self._draw(table, name, fingerprint, member.initial_seed, folder)
      for member, folder in zip(self.members, self._folders(), strict=True)
    ]
    return {leaf: np.stack([one[leaf] for one in drawn]) for leaf in drawn[0]}

  def _draw(
    self, table: np.ndarray, name: str, fingerprint: str, seed: int, folder: str
  ) -> Mapping[str, np.ndarray]:
    """Returns the leaves of one initial prompt, and writes them to its run's folder."""
    assert self.initial_prompt is not None
    drawn = initial.draw(
      self.model.prompt,
      self.initial_prompt,
      table,
      seed,
      name,
      fingerprint,
      self.model.network,
    )
    if drawn.refactored is not None:
      given, made = drawn.refactored, algebra.fold(drawn).leaves
      errors = {
        leaf: equations.relative_error(made[leaf], given.leaves[leaf]) for leaf in made
      }
      logging.info("Refactored %s; relative errors: %s", given.name, errors)
    provenance = dataclasses.replace(drawn.provenance, versions=saving.versions())
    saving.write(folder, saving.INITIAL, drawn.leaves, provenance)
    return drawn.leaves

  def _load_backbone(self) -> tuple[dict[str, jax.Array], str, str]:
    """Returns the backbone's leaves on the devices, its name and its fingerprint."""
    of_file = self.backbone in loading.NAMES or self.backbone.endswith(
      (".safetensors", gguf.SUFFIX)
    )
    if of_file or hugging_face.is_folder(self.backbone):
      loaded = loading.load_backbone(
        self.backbone, self.model.network, self.vocabulary, self._put
      )
      return identity.flatten(loaded.params), loaded.name, loaded.fingerprint
    leaves = self._restore_backbone()
    fingerprint = identity.backbone_fingerprint(_OneByOne(leaves))
    loading.check_fingerprint(
      self._noted.get("fingerprint"), fingerprint, self.backbone
    )
    name = self._noted.get("name") or loading.name_of(self.backbone)
    return leaves, name, fingerprint

  def _restore_backbone(self) -> dict[str, jax.Array]:
    """Returns the leaves of a T5X checkpoint; each host reads only its devices' part."""
    variables = {"params": self._whole.params, "params_axes": self._whole.params_axes}
    state = train_state_lib.InferenceState.create(flax.core.freeze(variables))
    paths = {path for path in self._shapes if not path.startswith(f"{PROMPT}/")}
    restored, manager = utils.create_checkpoint_manager_and_restore(
      types.SimpleNamespace(
        global_train_state_shape=_WithoutFrozen(state, paths, lambda state: state)
      ),
      self._partitioner,
      utils.RestoreCheckpointConfig(
        path=self.backbone, mode="specific", dtype=self.dtype.name
      ),
      self.backbone,
      None,
      use_orbax=True,
    )
    manager.close()
    params = identity.flatten(restored.params)
    return {path: params[path] for path in sorted(paths)}

  def _put(self, path: str, leaf: np.ndarray) -> jax.Array:
    sharding = NamedSharding(self._partitioner.mesh, self._axes[path])
    frozen = not path.startswith(PROMPT)
    return processes.put(np.asarray(leaf, self.dtype if frozen else None), sharding)

  def _check_backbone(self) -> None:
    """Raises `UserError` if the backbone is not there or has other leaves or tokens."""
    if self.vocabulary is not None:
      rows = self._shapes[self.model.network.TABLE].shape[0]
      digest = self._noted.get("vocabulary")
      loading.check_vocabulary(self.vocabulary, self.backbone, digest, rows)
    if self.backbone in loading.NAMES:
      loading.located(self.backbone)  # Refuses a model that was not fetched.
      return
    if not files.to_path(self.backbone).exists():
      raise UserError(
        f"There is no backbone '{self.backbone}'. Give {loading.BACKBONES} "
        "(checkpoint_<step>)."
      )
    if orbax.state_folder(self.backbone) is not None:
      saved = orbax.shapes(self.backbone, prefix="target")
      leaves = {
        path: jax.ShapeDtypeStruct(shape, self.dtype)
        for path, shape in saved.items()
        if not path.startswith(f"{PROMPT}/")
      }
      loading.check(leaves, self.model.network, self.backbone)

  def _check_data(self, input_shapes: Mapping[str, Any]) -> None:
    """Traces the model on the data, so that it refuses them before anything is written."""
    if input_shapes:
      batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in input_shapes.items()
      }
      jax.eval_shape(self.model.eval_fn, self._whole.params, batch)

  def _check_model_dir(self) -> None:
    """Raises `UserError` if another run, or its prompts, are in `model_dir`."""
    if self.model_dir is None:
      return
    saved = orbax.checkpoints_in(self.model_dir)
    for folder in dict.fromkeys((self.model_dir, *self._folders())):
      for name in ("manifest.json", *(() if saved else (saving.LAST, saving.BEST))):
        if (files.to_path(folder) / name).exists():
          raise UserError(
            f"'{folder}' has a {name} of another run, whose prompts this one would "
            "overwrite. Choose another MODEL_DIR, or move that run away."
          )
    if saved:
      self._check_same_bank()
      self._check_same_form(saved[-1])

  def _check_same_bank(self) -> None:
    assert self.model_dir is not None
    there = saving.read_members(self.model_dir)
    here = None if self.members is None else saving.described(self.members)
    other = saving.first_other(there or [], here or [])
    if other or _kind_of_run(there) != _kind_of_run(here):
      raise UserError(
        f"The run in '{self.model_dir}' is {_kind_of_run(there)}, this one "
        f"{_kind_of_run(here)}{other}. Give that run's gin files, TASKS, INITIAL_SEEDS and "
        "RATES, or choose another MODEL_DIR."
      )

  def _check_same_form(self, newest: files.Path) -> None:
    there = orbax.shapes(newest, prefix=f"target/{PROMPT}")
    here = {
      path.removeprefix(f"{PROMPT}/"): tuple(leaf.shape)
      for path, leaf in self._shapes.items()
      if path.startswith(f"{PROMPT}/")
    }
    if path := identity.first_difference(there, here):
      raise UserError(
        f"The newest checkpoint '{newest}' holds another prompt: {path} is "
        f"{there.get(path, 'not there')}; in this run it is {here.get(path, 'not there')}. "
        "Give that run's prompt file and lengths (its config.gin has them), or choose "
        "another MODEL_DIR."
      )
    started = saving.read_provenance(self._folders()[0], saving.INITIAL)
    alpha = getattr(self.model.prompt, "alpha", None)
    if started is not None and started.alpha != alpha:
      raise UserError(
        f"The run in '{self.model_dir}' started with alpha {started.alpha}; this one has "
        f"{alpha}, which makes another update of the same parameters. Set EPT.alpha to "
        "that run's, or choose another MODEL_DIR."
      )


def _kind_of_run(members: Sequence[Mapping[str, Any]] | None) -> str:
  return "of one prompt" if members is None else f"a bank of {len(members)}"


class _OneByOne(Mapping[str, np.ndarray]):
  """Leaves that are fetched to this host one by one, on access."""

  def __init__(self, leaves: Mapping[str, jax.Array]):
    self._leaves = leaves

  def __getitem__(self, path: str) -> np.ndarray:
    return processes.on_host(self._leaves[path])

  def __iter__(self) -> Iterator[str]:
    return iter(self._leaves)

  def __len__(self) -> int:
    return len(self._leaves)


@dataclasses.dataclass
class _WithoutFrozen:
  """A state of T5X as its checkpoints see it, with only the `kept` parameters.

  It is not a PyTree: T5X uses the methods below and never maps over it.
  """

  state: Any
  kept: set[str]
  complete: Callable[[Any], Any]

  def __getattr__(self, name: str) -> Any:
    return getattr(self.state, name)

  def state_dict(self) -> dict[str, Any]:
    whole = self.state.state_dict()
    target = identity.flatten(whole["target"])
    kept = {path: leaf for path, leaf in target.items() if path in self.kept}
    return whole | {"target": identity.unflatten(kept)}

  def restore_state(self, state_dict: Mapping[str, Any]) -> Any:
    whole = self.state.state_dict()
    target = identity.flatten(whole["target"]) | identity.flatten(state_dict["target"])
    merged = {**state_dict, "target": identity.unflatten(target)}
    return self.complete(self.state.restore_state(merged))

  def as_logical_axes(self) -> Any:
    axes = self.state.as_logical_axes()
    return _WithoutFrozen(
      axes, self.kept, lambda state: _WithoutFrozen(state, self.kept, self.complete)
    )


def subject(
  prompt: str | None = None,
  which: Which = "best",
  vector: candidates.Vector | None = None,
  initial: str | None = None,
  coefficient: float = 1.0,
) -> Loaded:
  """Returns the folded prompt for an evaluation or inference job.

  Args:
    prompt: a run folder of either runner, a checkpoint or a file that `tpv` wrote.
    which: the 'best', 'last' or 'initial' prompt of a run folder.
    vector: a vector or a sum of vectors; times `coefficient`, it is applied to `initial`.
    initial: an initial prompt; a run folder means its initial prompt.
    coefficient: of the vector.

  Raises:
    UserError: nothing was given, or something that is not a prompt.
  """
  leaves, provenance = candidates.subject(prompt, vector, initial, coefficient, which)
  if provenance is None:
    raise UserError(
      "Give the prompt to use: --gin.PROMPT_PATH, or --gin.VECTOR with --gin.INITIAL."
    )
  if provenance.kind != "prompt":
    raise UserError(
      f"'{prompt}' holds a vector, which is not a prompt. To apply it, give it as "
      "--gin.VECTOR with --gin.INITIAL."
    )
  return Loaded(leaves, provenance, str(prompt or vector))


def model_of(subject: Loaded, model: SoftPromptModel) -> SoftPromptModel:
  """Returns the model with a prompt of the subject's form in place of its own.

  A folded prompt has its own lengths, so a job needs no settings of the trained prompt.

  Raises:
    UserError: the prompt has another width than the backbone.
  """
  folded = Folded.of(subject.leaves)
  length, features = folded.prompt.shape
  longest = 0 if folded.delta is None else len(folded.delta)
  return model.with_prompt(plain.Prompt(length, features, longest))


def checkpoint_of(subject: Loaded, folder: str) -> str:
  """Writes the subject as a T5X checkpoint in a job's output folder; returns its path.

  Also writes the prompt with its provenance as `folder`/prompt.safetensors.
  """
  processes.check_shared(folder, "OUTPUT_DIR")
  saving.write(folder, SUBJECT, subject.leaves, subject.provenance)
  step = subject.provenance.steps or 0
  path = epath.Path(files.absolute(folder)) / "prompt" / f"checkpoint_{step}"
  if processes.is_writer() and path.exists():
    path.rmtree()
  processes.wait_for_all("prompt_checkpoint")
  tree = {"target": {PROMPT: dict(subject.leaves)}, "state": {"step": np.int32(step)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(path / "state", args=ocp.args.PyTreeSave(tree))
  return str(path)
