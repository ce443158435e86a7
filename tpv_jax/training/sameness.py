"""The settings that must be equal for a run to be continued, as its manifest has them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tpv_jax.core import identity
from tpv_jax.runs.records import sampled_steps
from tpv_jax.runs.run_settings import Settings, as_json, defaults_of, fields

if TYPE_CHECKING:
  from tpv_jax.training.loop import Run

_SIZES = range(-8, 5)
"""Powers of ten of the gradients by which optimizers are told apart."""


def settings_of(run: "Run", total_steps: int | None = None) -> Settings:
  """Returns the settings of a run, with defaults for those that old manifests lack.

  With `total_steps` they are those of a run that ends there, with the same schedule and
  optimizer.

  Schedule and optimizer are functions, so they are stated by what they do (ours): the
  learning rate at a few steps, and the directions on fixed gradients.
  """
  model = run.model
  total_steps = total_steps or run.total_steps
  sampled = sampled_steps(total_steps)
  parts = {"data": run.data, "network": model.network}
  if model.prompt is not None:
    parts["prompt"] = model.prompt
  values = {
    "total_steps": total_steps,
    "eval_period": run.eval_period,
    "log_period": run.log_period,
    "checkpoint_period": run.checkpoint_period,
    "best_metric": run.best_metric,
    "patience": run.patience,
    "microbatches": run.microbatches,
    "seed": run.seed,
    "initial_seed": run.initial_seed,
    "backbone": None if run.backbone is None else run.backbone.fingerprint,
    "data": as_json(run.data.settings()),
    "trainable": model.trainable,
    "z_loss": model.z_loss,
    "label_smoothing": model.label_smoothing,
    "loss_on_sources": model.loss_on_sources,
    "network": fields(model.network),
    "prompt": None if model.prompt is None else fields(model.prompt),
    "learning_rate": as_json(
      [float(f"{run.learning_rate(step):.5g}") for step in sampled]
    ),
    "initial_digest": run.initial_digest,
    "optimizer": _directions(model.optimizer_def, run.trained, sampled),
    "optimizer_by_size": _directions_by_size(model.optimizer_def, run.trained),
  }
  return Settings(
    values,
    {**run.defaults, **defaults_of(type(run), type(model))}
    | {name: defaults_of(type(part)) for name, part in parts.items()},
  )


def _directions(
  optimizer: optax.GradientTransformation, paths: Sequence[str], steps: Sequence[int]
) -> dict[str, Any]:
  """Returns the directions that the optimizer takes on fixed gradients, as text.

  These are the directions of two steps in a row, then the first value of a direction with
  the optimizer's counters set to each of `steps`, which shows schedules inside it. The
  parameters are large, which shows a small weight decay. `paths` names the leaves, which
  the optimizer may treat differently.
  """
  parameters = dict.fromkeys(paths, jnp.asarray([[1e3, -1e3], [0.0, 1e2]]))
  state = optimizer.init(parameters)
  first, second = [[1.0, 2.0], [-3.0, 4.0]], [[0.1, 0.0], [0.1, 0.0]]

  def follow(gradient: list[list[float]], state: Any) -> tuple[Any, Any]:
    gradients = dict.fromkeys(paths, jnp.asarray(gradient))
    return jax.device_get(optimizer.update(gradients, state, parameters))

  def at(step: int) -> Any:
    return jax.tree.map(
      lambda leaf: np.full_like(leaf, step) if _counts(leaf) else leaf, state
    )

  one, state = follow(first, state)
  two, state = follow(second, state)
  later = [follow(first, at(step))[0] for step in steps]
  values = {
    path: [*one[path].flat, *two[path].flat, *(taken[path].flat[0] for taken in later)]
    for path in paths
  }
  return _as_text(values)


def _directions_by_size(
  optimizer: optax.GradientTransformation, paths: Sequence[str]
) -> dict[str, Any]:
  """Returns the directions on gradients that grow and shrink, as text.

  A clipped gradient or an epsilon shows only in how the sizes of successive gradients
  relate. So the gradient grows tenfold from step to step and then shrinks again; the first
  value of each direction is stated. Adafactor limits what grows and shows clipping only
  where it shrinks. A limit above all these gradients counts as none.
  """
  parameters = dict.fromkeys(paths, jnp.ones((2, 2)))
  state, values = optimizer.init(parameters), []
  update = jax.jit(optimizer.update)
  for size in (*_SIZES, *_SIZES[-2::-1]):
    gradient = 10.0**size * jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    taken, state = update(dict.fromkeys(paths, gradient), state, parameters)
    values.append(jax.device_get(taken))
  return _as_text({path: [taken[path].flat[0] for taken in values] for path in paths})


def _as_text(values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  return identity.unflatten(
    {path: " ".join(f"{x:.4g}" for x in taken) for path, taken in values.items()}
  )


def _counts(leaf: np.ndarray) -> bool:
  return leaf.shape == () and np.issubdtype(leaf.dtype, np.integer)
