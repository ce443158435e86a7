"""T5 as a family of the registry. JAX is imported when a network is made."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.backbones.t5 import hugging_face
from tpv_jax.backbones.t5.sizes import SIZES, TINY

if TYPE_CHECKING:
  from tpv_jax.backbones.protocol import GgufReader
  from tpv_jax.backbones.t5.network import Transformer


class T5:
  """T5, T5 1.1, LM-adapted T5, Flan-T5 and mT5; see `protocol.Family`."""

  name = "T5"
  table = hugging_face.TABLE
  model_types: Mapping[str, str] = {"t5": "T5, T5 1.1, Flan-T5", "mt5": "mT5"}
  not_read: Mapping[str, str] = {"umt5": "its layers have a relative bias each"}
  leaves_tell_numbers = True
  gguf: Mapping[str, "GgufReader"] = {}
  sizes: Mapping[str, Mapping[str, Any]] = SIZES
  tiny: Mapping[str, Mapping[str, Any]] = TINY

  def network(self, **numbers: Any) -> "Transformer":
    """Returns the network with these arguments."""
    from tpv_jax.backbones.t5.network import Transformer

    return Transformer(**numbers)

  read_config = staticmethod(hugging_face.read_config)
  config_of = staticmethod(hugging_face.config_of)
  places = staticmethod(hugging_face.places)
  by_path = staticmethod(hugging_face.by_path)


FAMILY = T5()
