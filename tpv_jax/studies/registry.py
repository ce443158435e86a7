"""The registry of studies: each is a file like `study.py` and one line here."""

from typing import TYPE_CHECKING

from tpv_jax.core.registry import find

if TYPE_CHECKING:
  from tpv_jax.studies.base import Study

STUDIES = {
  "study": "tpv_jax.studies.study:Arithmetic",
  "few-shot": "tpv_jax.studies.few_shot:FewShot",
  "merging": "tpv_jax.studies.merging:Merging",
  "moving": "tpv_jax.studies.moving:Moving",
  "ablation": "tpv_jax.studies.ablation:Ablation",
}
"""Name -> 'module:attribute' of a class that is a `base.Study`; imported on use."""


def study(name: str) -> "type[Study]":
  """Returns the study of that name.

  Raises:
    UserError: there is none.
  """
  found: type[Study] = find(STUDIES, name, "study", plural="studies")
  return found
