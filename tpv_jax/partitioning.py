"""Where parameters and batches lie on the devices: a mesh of two axes, and named rules.

Every parameter names its axes ("embed", "mlp", ...); a rule says for each name along
which axis of the mesh it is cut. The rules are T5X's for one parameter and one
activation dimension; the names that T5X leaves out, and so replicates silently, are
written down.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tpv_jax import identity, meshes
from tpv_jax.errors import UserError, near_misses

DATA = "data"
"""Axis of the mesh along which the rows of a batch are dealt out."""

MODEL = "model"
"""Axis of the mesh along which parameters are cut."""

LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
  ("batch", DATA),
  ("vocab", MODEL),
  ("mlp", MODEL),
  ("heads", MODEL),
  ("joined_kv", MODEL),
  ("kv", None),
  ("embed", None),
  ("relpos_buckets", None),
  ("length", None),
  ("bank", None),
  ("prompt", None),
  ("source_position", None),
  ("rank", None),
  ("fusion", None),
  ("space", None),
  ("bottleneck", None),
)
"""(logical axis, axis of the mesh or None for replicated), as T5X takes them too."""

_AXES_SUFFIX = "_axes"


def make_mesh(model_parallel: int = 1) -> Mesh:
  """Returns all devices as a mesh ('data', 'model'), `model_parallel` along the latter.

  Raises:
    UserError: the number of devices is no multiple of `model_parallel`.
  """
  count = jax.device_count()
  if model_parallel < 1 or count % model_parallel:
    fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    raise UserError(
      f"model_parallel={model_parallel} does not divide the {count} devices here. "
      f"Choose one of {fits}."
    )
  devices = jax.devices()
  if meshes.have_coordinates(devices):
    arranged = meshes.arrange(devices, meshes.best_block(devices, model_parallel))
  else:
    arranged = mesh_utils.create_device_mesh((count // model_parallel, model_parallel))
  return Mesh(arranged, (DATA, MODEL))


def param_shardings(
  params_axes: Mapping[str, Any],
  mesh: Mesh | AbstractMesh,
  params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the tree of parameters with a `NamedSharding` for each.

  Args:
    params_axes: as the model's `get_initial_variables` gives it: at each parameter's
      place, `<name>_axes` with the names of its axes.
    mesh: from `make_mesh`, or an abstract one, which needs no devices.
    params: the parameters or their shapes. With them, an axis whose size the mesh does
      not divide is replicated (a vocabulary of 335 words on two devices); without, JAX
      refuses to place such a parameter.

  Raises:
    UserError: an axis name without a rule.
  """
  flat = None if params is None else identity.flatten(params)
  rules = dict(LOGICAL_AXIS_RULES)
  shardings = {}
  for axes_path, axes in identity.flatten(params_axes).items():
    path = axes_path.removesuffix(_AXES_SUFFIX)
    cuts = []
    for number, name in enumerate(axes.names):
      if name not in rules:
        raise UserError(
          f"Parameter '{path}' has an axis '{name}' for which there is no rule."
          f"{near_misses(str(name), rules)} Add it to "
          "tpv_jax.partitioning.LOGICAL_AXIS_RULES, with None to replicate it."
        )
      cut = rules[name]
      if cut and flat is not None and flat[path].shape[number] % mesh.shape[cut]:
        cut = None
      cuts.append(cut)
    shardings[path] = NamedSharding(mesh, PartitionSpec(*cuts))
  return identity.unflatten(shardings)


def abstract_parameters(
  model: Any, mesh: Mesh | AbstractMesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the form of a model's parameters by path, each with where it lies.

  Nothing is computed or placed.

  Args:
    model: with `get_initial_variables`, such as `model.SoftPromptModel`.
    mesh: as in `param_shardings`.

  Raises:
    UserError: an axis name without a rule.
  """
  # No parameter depends on the shapes of a batch.
  variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), {}))
  shardings = identity.flatten(
    param_shardings(variables["params_axes"], mesh, variables["params"])
  )
  return {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
    for path, leaf in identity.flatten(variables["params"]).items()
  }


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's arrays: rows along 'data'."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def placer(network: Any, mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
  """Returns what puts a leaf of `network` into its shards, as `load_backbone` takes it.

  Each device gets its part of the host's leaf, which can go then: the backbone is never
  on the host as a whole.
  """
  token = jax.ShapeDtypeStruct((1, 1), np.int32)
  variables = jax.eval_shape(network.init, jax.random.key(0), token, token, token)
  shardings = identity.flatten(
    param_shardings(variables["params_axes"], mesh, variables["params"])
  )

  def place(path: str, leaf: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      leaf.shape, shardings[path], lambda index: leaf[index]
    )

  return place
