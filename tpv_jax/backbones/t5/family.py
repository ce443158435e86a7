"""T5 as a family of the registry. JAX is imported when a network is asked for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.backbones.t5 import hugging_face
from tpv_jax.backbones.t5.hugging_face import Config
from tpv_jax.backbones.t5.sizes import SIZES, TINY
from tpv_jax.core import files
from tpv_jax.core.leaves import Leaf
from tpv_jax.formats.hugging_face import Place

if TYPE_CHECKING:
  from tpv_jax.backbones.t5.network import Transformer


class T5:
  """T5, T5 1.1, LM-adapted T5, Flan-T5 and mT5; see `protocol.Family`."""

  name = "T5"
  table = hugging_face.TABLE
  model_types: Mapping[str, str] = {"t5": "T5, T5 1.1, Flan-T5", "mt5": "mT5"}
  not_read: Mapping[str, str] = {"umt5": "its layers have a relative bias each"}
  sizes: Mapping[str, Mapping[str, Any]] = SIZES
  tiny: Mapping[str, Mapping[str, Any]] = TINY

  def network(self, **numbers: Any) -> "Transformer":
    """Returns the network of these numbers."""
    from tpv_jax.backbones.t5.network import Transformer

    return Transformer(**numbers)

  def read_config(self, folder: files.Path) -> Config:
    """Returns what a folder's config.json says; see `hugging_face.read_config`."""
    return hugging_face.read_config(folder)

  def config_of(
    self, leaves: Mapping[str, Any], source: str, model_type: str | None = None
  ) -> Config:
    """Returns the config that leaves tell; see `hugging_face.config_of`."""
    return hugging_face.config_of(leaves, source, model_type)

  def places(self, config: Config) -> list[Place]:
    """Returns every leaf, where it lies on either side; see `hugging_face.places`."""
    return hugging_face.places(config)

  def by_path(
    self, source: str, config: Config, found: Mapping[str, Leaf]
  ) -> dict[str, Leaf]:
    """Returns a folder's leaves by T5X path; see `hugging_face.by_path`."""
    return hugging_face.by_path(source, config, found)


FAMILY = T5()
