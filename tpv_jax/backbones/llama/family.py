"""LLaMA and its relatives as a family of the registry. JAX is imported for a network only."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.backbones import decoder_config
from tpv_jax.backbones.llama import config, gguf, hugging_face
from tpv_jax.backbones.llama.sizes import SIZES, TINY

if TYPE_CHECKING:
  from tpv_jax.backbones.llama.network import Llama
  from tpv_jax.backbones.protocol import GgufReader


class LlamaFamily:
  """LLaMA 2 and 3, SmolLM2, DeepSeek-LLM, Qwen 2.5 and 3, Mistral; see `protocol.Family`."""

  name = "LLaMA"
  table = decoder_config.TABLE
  model_types: Mapping[str, str] = config.MODEL_TYPES
  not_read: Mapping[str, str] = {
    "mixtral": "its feed-forward blocks are experts",
    "phi3": "its query, key and value are one matrix",
    "qwen2_moe": "its feed-forward blocks are experts",
    "qwen3_moe": "its feed-forward blocks are experts",
  }
  sizes: Mapping[str, Mapping[str, Any]] = SIZES
  tiny: Mapping[str, Mapping[str, Any]] = TINY
  leaves_tell_numbers = False  # Neither heads nor rotary positions.
  gguf: Mapping[str, "GgufReader"] = gguf.READERS

  def network(self, **numbers: Any) -> "Llama":
    """Returns the network with these arguments."""
    from tpv_jax.backbones.llama.network import Llama

    return Llama(**numbers)

  read_config = staticmethod(hugging_face.read_config)
  config_of = staticmethod(config.config_of)
  places = staticmethod(config.places)
  by_path = staticmethod(hugging_face.by_path)


FAMILY = LlamaFamily()
