"""Writes the weights of a pre-training run to one file."""

import ml_dtypes
import numpy as np

from tpv_jax.backbones import loading
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import vocabularies
from tpv_jax.io import orbax


def export(
  run: files.PathLike,
  output: files.PathLike,
  name: str,
  overwrite: bool = False,
) -> str:
  """Writes the weights of the run's newest checkpoint and returns their fingerprint.

  Values are rounded to bf16 and stored as fp32. So the file holds exactly the values that
  the fingerprint covers, in whatever dtype a reader computes.

  Args:
    run: a run folder of `training.training.train` in which everything was trained.
    output: the `.safetensors` file.
    name: of the backbone, for people.
    overwrite: whether an existing file may be replaced.

  Raises:
    UserError: the folder has no checkpoint, or one of another vocabulary; `output`
      exists.
  """
  checkpoints = orbax.checkpoints_in(run)
  if not checkpoints:
    raise UserError(
      f"'{run}' has no checkpoint, so there are no weights to export. Give the RUN_DIR "
      "of a pre-training run."
    )
  backbone = loading.load_backbone(checkpoints[-1])
  flat = {
    path: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32)
    for path, leaf in identity.flatten(backbone.params).items()
  }
  vocabulary, rows = vocabularies.embedded(), len(backbone.table)
  loading.check_vocabulary(vocabulary, name, None, rows)
  return loading.save_backbone(
    output,
    flat,
    name,
    vocabulary=vocabulary.digest,
    metadata={"steps": str(orbax.checkpoint_step(checkpoints[-1]))},
    overwrite=overwrite,
  )
