"""Gemma 3 as a family of the registry. JAX is imported for a network only."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.backbones import decoder_config
from tpv_jax.backbones.gemma3 import config, gguf, hugging_face
from tpv_jax.backbones.gemma3.sizes import SIZES, TINY

if TYPE_CHECKING:
  from tpv_jax.backbones.gemma3.network import Gemma3
  from tpv_jax.backbones.protocol import GgufReader


class Gemma3Family:
  """Gemma 3, text only; see `protocol.Family`."""

  name = "Gemma 3"
  table = decoder_config.TABLE
  model_types: Mapping[str, str] = {
    "gemma3_text": "Gemma 3",
    "gemma3": "the text part of Gemma 3 with images",
  }
  not_read: Mapping[str, str] = {
    "gemma": "what its blocks add has no norm",
    "gemma2": "its logits and its attention are soft-capped",
    "gemma3n": "its layers share keys and values, and have embeddings of their own",
    "gemma3n_text": "its layers share keys and values, and have embeddings of their own",
  }
  sizes: Mapping[str, Mapping[str, Any]] = SIZES
  tiny: Mapping[str, Mapping[str, Any]] = TINY
  leaves_tell_numbers = False  # Neither heads nor rotary positions nor windows.
  gguf: Mapping[str, "GgufReader"] = gguf.READERS

  def network(self, **numbers: Any) -> "Gemma3":
    """Returns the network with these arguments."""
    from tpv_jax.backbones.gemma3.network import Gemma3

    return Gemma3(**numbers)

  read_config = staticmethod(hugging_face.read_config)
  config_of = staticmethod(config.config_of)
  places = staticmethod(config.places)
  by_path = staticmethod(hugging_face.by_path)


FAMILY = Gemma3Family()
