"""The provenance of values in a format that has no place for it, as JSON beside them.

    {"format": "tpv_jax provenance 1", "digest": ..., "provenance": {...}}

The digest is `identity.prompt_digest` of the values that the file belongs to, so that it is
never read as the provenance of others.
"""

from collections.abc import Mapping

import numpy as np

from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance

FORMAT = "tpv_jax provenance 1"


def encode(leaves: Mapping[str, np.ndarray], provenance: Provenance) -> bytes:
  """Returns the bytes of the file that belongs to these leaves."""
  stated, beside = provenance.apart()
  content = {
    "format": FORMAT,
    "digest": identity.prompt_digest(leaves),
    "provenance": stated,
    **beside,
  }
  return files.json_bytes(content)


def read(
  path: files.Path, leaves: Mapping[str, np.ndarray], shown: str
) -> Provenance | None:
  """Returns the provenance of these leaves, or None if there is no file at `path`.

  Raises:
    UserError: it is damaged, or belongs to values other than those of `shown`.
  """
  if not path.is_file():
    return None
  content = files.read_json(path)
  digest = identity.prompt_digest(leaves)
  try:
    if content["format"] != FORMAT:
      raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
    stated = str(content["digest"])
    provenance = Provenance.joined(content["provenance"], content)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"'{path}' does not state the provenance of '{shown}': {error!r}. Remove it to "
      "read the values without provenance."
    ) from error
  if stated != digest:
    raise UserError(
      f"'{path}' states the provenance of other values (digest {stated[:12]}…) than "
      f"'{shown}' holds ({digest[:12]}…). Remove it if the values were replaced on "
      "purpose; if an export with --overwrite was stopped, repeat it; otherwise take "
      "another copy of both."
    )
  store.check_provenance(leaves, provenance, str(path))
  return provenance
