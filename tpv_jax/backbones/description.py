"""What a backbone says about itself; its values are not read."""

import math
from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones import loading, registry
from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.formats import gguf, hub, hugging_face, peft
from tpv_jax.io import safetensors


def is_backbone(path: str) -> bool:
  """Returns whether a name, a file or a folder is a backbone and no prompt.

  A T5X checkpoint may be either, and counts as a prompt.
  """
  if path in loading.NAMES or path.startswith(hub.PREFIX):
    return True
  if (model := hub.named(path)) is not None:  # Only if no network is needed.
    return hub.cached(model) is not None
  place = files.to_path(path)
  if place.is_file():
    if gguf.is_gguf(place):
      return True
    try:
      metadata = safetensors.read_header(place).metadata
    except UserError:
      return False
    return metadata.get("format") == loading.FORMAT
  return not peft.is_adapter(place) and (place / hugging_face.CONFIG).is_file()


def describe(path: str) -> dict[str, Any]:
  """Returns what a backbone states and its leaves tell, as JSON values by name.

  Raises:
    UserError: as `loading.opened`; or it does not tell the numbers of its network.
  """
  with loading.opened(path, whole=False) as source:
    count = sum(math.prod(leaf.shape) for leaf in source.leaves.values())
    return {
      "path": path,
      "kind": "backbone",
      "format": source.kind,
      "name": source.name,
      "family": registry.key_of(source.family),
      "network": dict(source.numbers),
      "leaves": len(source.leaves),
      "parameters": count,
      "dtypes": sorted({str(leaf.dtype) for leaf in source.leaves.values()}),
      "fingerprint": source.fingerprint,
      "vocabulary": source.vocabulary,
    }


def rows(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Returns `describe`'s content as labels and values for people; None for unknown."""
  network = (f"{name} {_shown(value)}" for name, value in content["network"].items())
  return [
    ("path", content["path"]),
    ("kind", f"backbone ({content['format']})"),
    ("name", content["name"]),
    ("family", content["family"]),
    ("network", ", ".join(network)),
    ("leaves", f"{content['leaves']}, {' and '.join(content['dtypes'])}"),
    ("parameters", f"{content['parameters']:,}"),
    ("fingerprint", content["fingerprint"]),
    ("vocabulary", content["vocabulary"]),
  ]


def _shown(value: Any) -> str:
  if isinstance(value, tuple) and len(value) > 4:
    return f"{len(value)} from {value[0]:g} to {value[-1]:g}"
  return str(value)
