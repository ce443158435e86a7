"""The network of a backbone by its path, for gin: its own config gives the numbers.

Only headers and config.json are read. So no gin file of a size is needed.
"""

from collections.abc import Mapping
from typing import Any

from tpv_jax.backbones import loading
from tpv_jax.backbones.protocol import Family, Network
from tpv_jax.backbones.quantization import Mode
from tpv_jax.core.errors import UserError


def network(
  backbone: str,
  dtype: str = "float32",
  dropout_rate: float = 0.0,
  remat: bool = False,
  quantize: Mode | None = None,
) -> Network:
  """Returns the network of the backbone at a path.

  Args:
    backbone: as for `loading.load_backbone`.
    dtype: of the computation, 'float32' or 'bfloat16'.
    dropout_rate: 0 for a frozen backbone.
    remat: whether layers recompute their activations in the backward pass, which saves
      memory and takes a third more time.
    quantize: how frozen kernels are stored, a mode of `quantization`; None as they are.

  Raises:
    UserError: as `loading.opened`; or the backbone does not tell its numbers, or its
      network cannot be quantised.
  """
  family, numbers = _stated(backbone)
  options = {"dtype": dtype, "dropout_rate": dropout_rate, "remat": remat}
  made = family.network(**numbers, **options)
  if quantize is None:
    return made
  if not hasattr(made, "quantize"):
    raise UserError(
      f"QUANTIZE = '{quantize}': the network of {family.name} cannot be quantised. Set "
      "QUANTIZE = None."
    )
  return family.network(**numbers, **options, quantize=quantize)


def features(backbone: str) -> int:
  """Returns D, the features of a token, of the backbone at a path."""
  return int(_stated(backbone)[1]["emb_dim"])


def _stated(backbone: str) -> tuple[Family, Mapping[str, Any]]:
  """Returns family and numbers of a backbone."""
  with loading.opened(backbone, whole=False) as source:
    return source.family, source.numbers
