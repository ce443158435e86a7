"""Finds the backbone that the user names in any way. JAX is imported for a file only."""

import contextlib
import re

from tpv_jax.core.errors import UserError
from tpv_jax.formats import sources
from tpv_jax.formats.sources import Backbone


def named(text: str) -> Backbone:
  """Returns the backbone that the user means by a fingerprint, a prompt, or itself."""
  if re.fullmatch("[0-9a-f]{64}", text):
    return Backbone(text)
  with contextlib.suppress(UserError):  # Then it is no prompt, but a backbone.
    item = sources.load(text)
    known = item.provenance
    if known.backbone_fingerprint is not None:
      return Backbone(
        known.backbone_fingerprint, known.backbone_name, sources.width_of(item.leaves)
      )
  from tpv_jax.backbones import loading

  # Keeps the leaves' shapes only.
  found = loading.load_backbone(text, place=lambda name, leaf: leaf.shape)
  return Backbone(found.fingerprint, found.name, found.table[1])
