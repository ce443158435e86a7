"""Prompts as `prompt_embeds` for servers and for `transformers`: one safetensors file.

It holds one array, "prompt_embeds" [P, D] in fp32: the rows that stand before a text's own
embeddings. The provenance lies beside it; see `sidecar`. NumPy only.
"""

import numpy as np

from tpv_jax.core import files
from tpv_jax.core.errors import UserError
from tpv_jax.formats import arrays, peft, sidecar
from tpv_jax.io import safetensors
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded

LEAF = "prompt_embeds"
"""The array's name, as vLLM's and other servers' requests name it."""


def write(path: files.PathLike, prompt: Loaded, overwrite: bool = False) -> None:
  """Writes the rows of a folded prompt, and its provenance beside them.

  Raises:
    UserError: `prompt` is a vector, has a delta other than 0 or an unknown alpha; `path`
      has another ending or exists.
    OSError: nothing was written.
  """
  path = files.to_path(path)
  check_output(path, overwrite)
  folded = algebra.fold(prompt)
  peft.refuse_delta(folded, "A file of prompt_embeds")
  rows = np.asarray(folded.leaves["prompt"], np.float32)
  note = sidecar.encode({"prompt": rows}, folded.provenance)
  content = safetensors.encode({LEAF: rows}, {"format": "pt"})
  files.write_together({path: content, arrays.beside(path): note}, overwrite)


def check_output(path: files.PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `write` could not write to `path`, whatever the prompt."""
  path = files.to_path(path)
  if path.suffix != ".safetensors":
    raise UserError(
      f"'{path}' does not end in .safetensors. Name the output '{path}.safetensors'."
    )
  files.check_together((path, arrays.beside(path)), overwrite)
