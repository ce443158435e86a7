"""Which devices share the shards of a parameter: a block of chips, chosen by position.

A TPU states its position in its slice as `coords` (x, y, z) and `core_on_chip`; a host has
a tile of neighbouring chips. NumPy only.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpv_jax.core.errors import UserError

Block = tuple[int, int, int, int]
"""Devices along x, y and z, and within a chip; T5X's `HardwareMesh`."""


def have_coordinates(devices: Sequence[Any]) -> bool:
  """Returns whether the devices state their positions, as TPUs do."""
  return all(len(getattr(device, "coords", None) or ()) == 3 for device in devices)


def block(
  devices: Sequence[Any], model_parallel: int = 1, submesh: Any = None
) -> Block:
  """Returns the block of devices over which parameters are sharded: `submesh` or the best.

  Devices without coordinates form a row, and the block is a part of it: (1, 1, 1, n).

  Args:
    devices: all of them.
    model_parallel: MODEL_PARALLEL, devices in the block; with a `submesh`, 1 leaves their
      number to it.
    submesh: MODEL_PARALLEL_SUBMESH, the block; None chooses it by `best_block`.

  Raises:
    UserError: no such block is possible here, or the two have different sizes.
  """
  count = len(devices)
  if submesh is None:
    size = model_parallel
    if size < 1 or count % size:
      raise UserError(
        f"MODEL_PARALLEL={size} does not divide the {count} devices here. Choose one of "
        f"{_divisors(count)}."
      )
    return best_block(devices, size) if have_coordinates(devices) else (1, 1, 1, size)
  sides = tuple(submesh) if isinstance(submesh, list | tuple) else ()
  if len(sides) != 4 or not all(type(side) is int and side > 0 for side in sides):
    raise UserError(
      f"MODEL_PARALLEL_SUBMESH={submesh!r} is no block of devices: write (x, y, z, "
      "cores), such as (2, 2, 1, 1), or None for an automatic choice."
    )
  size = math.prod(sides)
  if model_parallel not in (1, size):
    raise UserError(
      f"MODEL_PARALLEL_SUBMESH={sides} is a block of {size} devices, and "
      f"MODEL_PARALLEL={model_parallel}. Give one of them."
    )
  x, y, z, cores = sides
  if not have_coordinates(devices):
    if (x, y, z) != (1, 1, 1) or count % cores:
      raise UserError(
        f"MODEL_PARALLEL_SUBMESH={sides} says where TPU chips lie, and the {count} "
        f"devices here are a row. Set MODEL_PARALLEL instead, to one of {_divisors(count)}."
      )
  else:
    bounds, tile = _slice(devices)
    if not _tiles((x, y, z, cores), bounds, tile):
      raise UserError(
        f"MODEL_PARALLEL_SUBMESH={sides} does not tile this slice of {_text(bounds)} "
        f"devices (x, y, z, cores of a chip), of which a host has {_text(tile)}: each "
        "number must divide the slice's, and divide the host's or be a multiple of it. "
        "Or set MODEL_PARALLEL instead, for an automatic choice."
      )
  return x, y, z, cores


def best_block(devices: Sequence[Any], size: int) -> Block:
  """Returns the shape of the best block of `size` devices to shard parameters over.

  Traffic is cheapest within a chip, then within a host, then between neighbours. So the
  block fills a chip's cores first, then the host's tile, and is as compact as it can be.
  Along each side it divides the slice, and it divides the host's tile or is a multiple of
  it: otherwise a host's devices would not form a block of the mesh, which JAX and T5X
  require. Ours.

  Args:
    devices: all of them, with coordinates.
    size: devices in the block.

  Raises:
    UserError: no block of that size tiles the slice, or there are several slices.
  """
  bounds, tile = _slice(devices)

  def fits(block: Block) -> bool:
    return math.prod(block) == size and _tiles(block, bounds, tile)

  def cost(block: Block) -> tuple[int, ...]:
    return -block[3], -math.prod(map(min, block, tile)), sum(block), block[2], block[1]

  x, y, z, core = ([n for n in range(1, side + 1) if side % n == 0] for side in bounds)
  blocks = sorted(filter(fits, itertools.product(x, y, z, core)), key=cost)
  if not blocks:
    raise UserError(
      f"No block of {size} devices tiles this slice of {_text(bounds)} (x, y, z, cores of "
      f"a chip). Set MODEL_PARALLEL to another one of {_divisors(len(devices))}."
    )
  return blocks[0]


def arrange(devices: Sequence[Any], block: Block) -> np.ndarray:
  """Returns the devices as `[data, model]`: a row is a block, a host's rows are adjacent.

  The order is that of T5X's `partitioning.get_mesh` where it tiles by hosts: hosts, blocks
  on a host, then within a block hosts and their devices.
  """
  bounds, tile = _bounds(devices), _tile(devices)
  placed = np.empty(bounds, object)
  for device in devices:
    placed[_place(device)] = device
  parts = []
  for side, own, at_host in zip(bounds, block, tile, strict=True):
    shared = min(own, at_host)  # Devices of one block on one host, along this side.
    parts += [side // max(own, at_host), at_host // shared, own // shared, shared]
  order = [axis for part in range(4) for axis in range(part, 16, 4)]
  return placed.reshape(parts).transpose(order).reshape(-1, math.prod(block))


def _slice(devices: Sequence[Any]) -> tuple[Block, Block]:
  """Returns the shapes of the slice and of a host's tile of it.

  Raises:
    UserError: the devices do not fill one slice.
  """
  bounds = _bounds(devices)
  if math.prod(bounds) != len(devices):
    raise UserError(
      f"The {len(devices)} devices do not fill one slice of {_text(bounds)}. Several "
      "slices at once are not supported: start the run on one."
    )
  return bounds, _tile(devices)


def _tiles(block: Block, bounds: Block, tile: Block) -> bool:
  """Returns whether blocks of this shape fill the slice, and each host has whole blocks."""
  return all(
    side % own == 0 and (own % at_host == 0 or at_host % own == 0)
    for own, side, at_host in zip(block, bounds, tile, strict=True)
  )


def _divisors(count: int) -> str:
  return ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)


def _place(device: Any) -> tuple[int, ...]:
  return (*device.coords, device.core_on_chip)


def _bounds(devices: Sequence[Any]) -> Block:
  x, y, z, core = (np.max([_place(device) for device in devices], axis=0) + 1).tolist()
  return x, y, z, core


def _tile(devices: Sequence[Any]) -> Block:
  """Returns the shape of a host's tile; all hosts of a slice have the same one."""
  first = min(devices, key=_place).process_index
  return _bounds([device for device in devices if device.process_index == first])


def _text(sides: Block) -> str:
  return " x ".join(map(str, sides))
