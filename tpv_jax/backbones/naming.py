"""Finds the backbone that the user names. JAX is imported only to read a backbone."""

import contextlib
import re

from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.formats.sources import Backbone


def named(text: str) -> Backbone:
  """Returns the backbone that a fingerprint, a prompt's path or its own path names."""
  if re.fullmatch("[0-9a-f]{64}", text):
    return Backbone(text)
  with contextlib.suppress(UserError):  # It is not a prompt, so it is a backbone.
    item = sources.load(text)
    known = item.provenance
    if known.backbone_fingerprint is not None:
      return Backbone(
        known.backbone_fingerprint,
        known.backbone_name,
        sources.width_of(item.leaves),
        known.architecture,
      )
  from tpv_jax.backbones import loading

  # Keeps the leaves' shapes only.
  found = loading.load_backbone(text, place=lambda name, leaf: leaf.shape)
  architecture = None
  with contextlib.suppress(UserError), loading.opened(text, whole=False) as source:
    # Leaves that are no whole network give a fingerprint all the same.
    architecture = source.family.network(**source.numbers).ARCHITECTURE
  return Backbone(
    found.fingerprint,
    found.name,
    found.table[1],
    None if architecture == "encoder_decoder" else architecture,
  )
