"""The sharding of parameters and batches: a mesh of two axes, and rules by axis name.

Every parameter names its axes ("embed", "mlp", ...); a rule says for each name along which
axis of the mesh it is sharded. The backbone's rules are T5X's for one parameter and one
activation dimension; the names that T5X leaves out, and so replicates silently, have a
rule, too. The trained parameters of an EPT prompt have their own name for the width, so
that it is sharded while the backbone's "embed" is not. An axis whose size the mesh does not
divide is replicated.
"""

import contextlib
import contextvars
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax.linen import spmd
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.devices import meshes

DATA = "data"
"""Axis of the mesh along which the rows of a batch are sharded."""

MODEL = "model"
"""Axis of the mesh along which parameters are sharded."""

BATCH = "batch"
"""Logical axis of a batch's rows."""

Rules = tuple[tuple[str, str | None], ...]
"""Pairs of a logical axis and an axis of the mesh, or None to replicate, as in T5X.

For each logical axis the first rule applies whose axis of the mesh is still free.
"""

LOGICAL_AXIS_RULES: Rules = (
  (BATCH, DATA),
  ("vocab", MODEL),
  ("mlp", MODEL),
  ("heads", MODEL),
  ("joined_kv", MODEL),
  ("joined_kv_groups", MODEL),
  ("kv", None),
  ("embed", None),
  ("relpos_buckets", None),
  ("length", None),
  ("bank", DATA),
  ("prompt", None),
  ("prompt_embed", MODEL),
  ("source_position", None),
  ("rank", None),
  ("fusion", None),
  ("space", None),
  ("bottleneck", None),
)
"""The rule of each axis that our parameters have."""

_ONLY_IN_T5X = ("abspos_buckets", "layers", "stack", "mlp_activations")
"""Names with a rule in T5X's standard rules that none of our parameters has."""

_PAIRS = (
  "write [('embed', 'data'), ...], the name of an axis and 'data', 'model' or None"
)

_AXES_SUFFIX = "_axes"


def make_mesh(model_parallel: int = 1) -> Mesh:
  """Returns all devices as a mesh ('data', 'model'), `model_parallel` along the latter.

  Raises:
    UserError: the number of devices is no multiple of `model_parallel`.
  """
  devices = jax.devices()
  block = meshes.block(devices, model_parallel)
  if meshes.have_coordinates(devices):
    arranged = meshes.arrange(devices, block)
  else:
    arranged = mesh_utils.create_device_mesh((len(devices) // block[3], block[3]))
  return Mesh(arranged, (DATA, MODEL))


def merged(rules: Any) -> Rules:
  """Returns the user's rules, and ours for all names that these do not mention.

  Args:
    rules: AXIS_RULES, pairs as in `Rules`.

  Raises:
    UserError: a rule is not a pair, its name is of no parameter, or its axis of no mesh.
  """
  known = [*dict(LOGICAL_AXIS_RULES), *_ONLY_IN_T5X]
  if not isinstance(rules, list | tuple):
    raise UserError(f"AXIS_RULES={rules!r} is no list of pairs: {_PAIRS}.")
  for rule in rules:
    if not (isinstance(rule, list | tuple) and len(rule) == 2):
      raise UserError(f"AXIS_RULES has {rule!r}, which is no pair: {_PAIRS}.")
    name, cut = rule
    if name not in known:
      raise UserError(
        f"AXIS_RULES has a rule for '{name}', and no parameter has an axis of that name."
        f"{near_misses(str(name), known)} The names are {', '.join(known)}."
      )
    if cut not in (None, DATA, MODEL):
      raise UserError(
        f"AXIS_RULES shards '{name}' along {cut!r}; the mesh has the axes '{DATA}' and "
        f"'{MODEL}'. Write one of them, or None to replicate it."
      )
    if name == BATCH and cut != DATA:
      raise UserError(
        f"AXIS_RULES shards '{BATCH}' along {cut!r}: the rows of a batch are always "
        f"sharded along '{DATA}'. Leave that rule out."
      )
  own = {name for name, _ in rules}
  ours = (rule for rule in LOGICAL_AXIS_RULES if rule[0] not in own)
  return (*((name, cut) for name, cut in rules), *ours)


def param_shardings(
  params_axes: Mapping[str, Any],
  mesh: Mesh | AbstractMesh,
  params: Mapping[str, Any] | None = None,
  units: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Returns the tree of parameters with a `NamedSharding` for each.

  Args:
    params_axes: as in `axis_names`.
    mesh: from `make_mesh`, or an abstract one, which needs no devices.
    params: the parameters or their shapes. With them, an axis whose size the mesh does
      not divide is replicated; without, JAX refuses to place such a parameter.
    units: see `that_divide`.

  Raises:
    UserError: an axis name has no rule.
  """
  names = axis_names(params_axes)
  shapes = {path: (0,) * len(axes) for path, axes in names.items()}
  if params is not None:
    shapes = {path: leaf.shape for path, leaf in identity.flatten(params).items()}
  rules, _ = that_divide(LOGICAL_AXIS_RULES, names, shapes, mesh, units)
  return identity.unflatten(
    {path: _sharding(axes, rules, mesh) for path, axes in names.items()}
  )


@dataclasses.dataclass(frozen=True)
class Layout:
  """The sharding of a model's parameters on a mesh.

  Attributes:
    mesh: the devices, or an abstract one, which needs none.
    rules: by which the parameters are sharded; see `that_divide`.
    parameters: the shape, dtype and sharding of each parameter by path.
    axes: the names of each parameter's axes by path.
    kept_whole: a line for each axis that is replicated because the mesh does not divide it.
  """

  mesh: Mesh | AbstractMesh
  rules: Rules
  parameters: dict[str, jax.ShapeDtypeStruct]
  axes: dict[str, tuple[str, ...]]
  kept_whole: list[str]


_AXIS_RULES: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar(
  "axis rules", default=None
)


@contextlib.contextmanager
def axis_rules(mesh: Mesh, rules: Rules) -> Iterator[None]:
  """Makes `constrain` use this mesh and these rules for what is traced within the block."""
  token = _AXIS_RULES.set((mesh, rules))
  try:
    yield
  finally:
    _AXIS_RULES.reset(token)


def constrain(x: Any, *axes: str | None) -> Any:
  """Returns the array with its sharding, and its gradient's, constrained by the rules.

  The rules are those of the surrounding `axis_rules`; without one, `x` is returned as it is.
  XLA alone might gather large parameters instead of the small arrays computed from them.

  Args:
    x: the array.
    axes: the name of each axis, or None for an axis that is whole on each device.
  """
  found = _AXIS_RULES.get()
  if found is None:
    return x
  mesh, rules = found
  return jax.lax.with_sharding_constraint(x, _sharding(axes, rules, mesh))


def layout(model: Any, mesh: Mesh | AbstractMesh) -> Layout:
  """Returns the sharding of a model's parameters; nothing is computed or placed.

  Args:
    model: with `get_initial_variables`, such as `model.SoftPromptModel`.
    mesh: from `make_mesh`, or an abstract one.

  Raises:
    UserError: an axis name has no rule.
  """
  # No parameter depends on the shapes of a batch.
  variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), {}))
  params, names = (
    identity.flatten(variables["params"]),
    axis_names(variables["params_axes"]),
  )
  shapes = {path: leaf.shape for path, leaf in params.items()}
  rules, kept_whole = that_divide(
    LOGICAL_AXIS_RULES, names, shapes, mesh, units_of(model)
  )
  return Layout(
    mesh,
    rules,
    {
      path: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=_sharding(names[path], rules, mesh)
      )
      for path, leaf in params.items()
    },
    names,
    kept_whole,
  )


def that_divide(
  rules: Rules,
  names: Mapping[str, Sequence[str]],
  shapes: Mapping[str, Sequence[int]],
  mesh: Mesh | AbstractMesh,
  units: Mapping[str, int] | None = None,
) -> tuple[Rules, list[str]]:
  """Returns the rules, changed to replicate axes that the mesh does not divide.

  A vocabulary of 335 words, for example, is replicated on two devices. Each change has a
  line in the list that comes with the rules. A name has one size in all parameters of a
  model.

  Args:
    rules: in their order.
    names: of the axes of each parameter, by path.
    shapes: of the parameters, by path.
    mesh: of the devices.
    units: for some axis names, how many neighbours stay together, such as the features
      of a head; the mesh must divide the number of units. 1 by default.

  Raises:
    UserError: an axis name has no rule.
  """
  sizes: dict[str, int] = {}
  for path, axes in names.items():
    _refuse_unknown(path, axes, rules)
    sizes |= dict(zip(axes, shapes[path], strict=True))
  for name, unit in (units or {}).items():
    sizes[name] = sizes.get(name, 0) // unit
  kept: list[tuple[str, str | None]] = []
  whole: list[tuple[str, str | None]] = []
  lines = []
  for name, cut in rules:
    if cut and sizes.get(name, 0) % mesh.shape[cut]:
      whole.append((name, None))
      lines.append(why_replicated(name, sizes[name], cut, mesh.shape[cut]))
    else:
      kept.append((name, cut))
  return (*kept, *whole), lines


def units_of(model: Any) -> Mapping[str, int]:
  """Returns the `units` of `that_divide` that a model's network has, if it has any."""
  units: Mapping[str, int] = getattr(getattr(model, "network", None), "AXIS_UNITS", {})
  return units


def why_replicated(name: str, size: int, cut: str, devices: int) -> str:
  """Returns the line about an axis whose size the `devices` along `cut` do not divide."""
  return (
    f"'{name}' of size {size} is replicated: the {devices} devices along '{cut}' do not "
    "divide it."
  )


def axes_of_moment(
  shape: Sequence[int], parameter: Sequence[int], axes: Sequence[Any]
) -> tuple[Any, ...] | None:
  """Returns which of a parameter's axes an optimizer's moment of it has.

  These are all of them or, for a factored moment, those that are left. None if the shape
  does not determine them.

  Args:
    shape: of the moment.
    parameter: the parameter's shape.
    axes: a value for each of the parameter's axes: its name, or its axis of the mesh.
  """
  if tuple(shape) == tuple(parameter):
    return tuple(axes)
  found = {
    tuple(axes[axis] for axis in left)
    for left in itertools.combinations(range(len(parameter)), len(shape))
    if [parameter[axis] for axis in left] == list(shape)
  }
  return found.pop() if len(found) == 1 else None


def axis_names(params_axes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """Returns the names of each parameter's axes, by its path.

  Args:
    params_axes: from the model's `get_initial_variables`: `<name>_axes` in the place of
      each parameter, with the names of its axes.
  """
  return {
    path.removesuffix(_AXES_SUFFIX): tuple(axes.names)
    for path, axes in identity.flatten(params_axes).items()
  }


def _sharding(
  names: Sequence[str | None], rules: Rules, mesh: Mesh | AbstractMesh
) -> NamedSharding:
  spec = spmd.logical_to_mesh_axes(names, rules)
  return NamedSharding(mesh, spec or PartitionSpec())


def _refuse_unknown(path: str, axes: Sequence[str], rules: Rules) -> None:
  known = [name for name, _ in rules]
  for name in axes:
    if name not in known:
      raise UserError(
        f"Parameter '{path}' has an axis '{name}' for which there is no rule."
        f"{near_misses(str(name), known)} Add it to "
        "tpv_jax.devices.partitioning.LOGICAL_AXIS_RULES, with None to replicate it."
      )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch's arrays: rows along 'data'."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def that_fits(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
  """Returns the sharding of a part of a leaf, such as the scales of a quantised kernel.

  The part has the leaf's axes, shorter ones among them; those that the mesh does not
  divide are replicated.
  """
  mesh, spec = sharding.mesh, (*sharding.spec, *[None] * len(shape))
  return NamedSharding(
    mesh,
    PartitionSpec(
      *(
        cut if cut is None or size % mesh.shape[cut] == 0 else None
        for size, cut in zip(shape, spec, strict=False)
      )
    ),
  )
