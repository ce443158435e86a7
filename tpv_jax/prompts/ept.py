"""EPT and DePT: a short prompt with a low-rank update of the source's embeddings.

The equations and the letters are those of `equations` (docs/methods.md, "EPT").
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes

from tpv_jax.core import identity
from tpv_jax.core.checks import Size, SizeOrNone, check_fields
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning
from tpv_jax.prompts import equations, plain
from tpv_jax.prompts.equations import Folded
from tpv_jax.prompts.protocol import Start


class EPT(nn.Module):
  """Efficient prompt tuning (Lan et al., arXiv 2405.11464), with optional parts.

  Without fusion and subspaces it is DePT (Shi & Lipani 2023), and with rank 0 as well it is
  plain prompt tuning. `budget` finds the rank for a number of parameters.

  Attributes:
    length: S, tokens of the short prompt.
    features: D, the width of the backbone.
    source_length: M, the length of the longest source; longer ones are refused.
    rank: R, of the low-rank update; 0 switches it off.
    fusion_width: H, width of the prompt fusion's attention; 0 switches it off.
    spaces: K, subspaces of the multi-space projection; 0 switches it and the gate off.
    bottleneck: Q, width of a subspace's bottleneck.
    alpha: the numerator of the low-rank update's scale, (2.1).
    decomposition: how the long prompt is decomposed, 'svd' or 'dept'.
  """

  length: Size
  features: Size
  source_length: Size
  rank: SizeOrNone
  fusion_width: SizeOrNone = 0
  spaces: SizeOrNone = 0
  bottleneck: Size = 1
  alpha: float = equations.ALPHA
  decomposition: str = "svd"

  def __post_init__(self) -> None:
    super().__post_init__()
    check_fields(self)
    equations.refuse_impossible(*self._sizes())
    equations.refuse_unknown(self.decomposition)
    if not self.alpha > 0:
      raise UserError(
        f"alpha is {self.alpha!r}, which would switch off or reverse the low-rank update. "
        f"Give a number above 0, such as DePT's {equations.ALPHA:g}; to switch the update "
        "off, set the rank to 0."
      )

  @nn.compact
  def __call__(self) -> Folded:
    """Returns the folded prompt, (3.12), in fp32 whatever the backbone's dtype is."""
    leaves = {
      name: partitioning.constrain(
        jnp.asarray(
          param_with_axes(name, _initializer(name, form), form.shape, axes=form.axes)
        ),
        *form.axes,
      )
      for name, form in self.parameters().items()
    }
    with jax.default_matmul_precision("float32"):
      folded = equations.fold(leaves, self.alpha)
    # If the parameters are sharded over devices, these are computed in the same shards.
    return jax.tree.map(
      lambda x: partitioning.constrain(x, None, "prompt_embed"), folded
    )

  def parameters(self) -> dict[str, equations.Parameter]:
    """Returns the shape and the start of every parameter by name."""
    return equations.parameters(*self._sizes())

  def _sizes(self) -> tuple[int, int, int, int, int, int, int]:
    """Returns S, D, M, R, H, K and Q, in the order of the arguments of `equations`."""
    return (
      self.length,
      self.features,
      self.source_length,
      self.rank,
      self.fusion_width,
      self.spaces,
      self.bottleneck,
    )

  def initial_leaves(self, start: Start, seed: int) -> dict[str, np.ndarray]:
    """Returns the parameters (fp32) that training starts from.

    A long prompt, an array [P, D] or a plain prompt from a file, is decomposed, (3.1) to
    (3.3). A folded prompt is refactored, (3.13) and (3.14): its prompt exactly, its delta
    cut at rank R. The parameters of an EPT prompt are taken unchanged.

    Args:
      start: the result of a function of `training.initial`.
      seed: of the parameters that the start does not determine: W_q, W_k, U_k and W_g.

    Raises:
      UserError: shapes or alpha differ, or the long prompt is too short.
    """
    rng = np.random.default_rng([seed, 1])  # Not the stream of the long prompt.
    leaves = {name: _draw(form, rng) for name, form in self.parameters().items()}
    if isinstance(start, np.ndarray):
      return leaves | self._decompose(start, rng)
    given = start.leaves
    if "short_prompt" in given:
      self._refuse_other(start.name, given, start.provenance.alpha)
      return {name: np.asarray(given[name], np.float32) for name in leaves}
    folded = Folded.of(given)
    if folded.delta is None:
      return leaves | self._decompose(folded.prompt, rng)
    expected = (self.length, self.features), (self.source_length, self.features)
    if (folded.prompt.shape, folded.delta.shape) != expected:
      raise UserError(
        f"'{start.name}' holds a prompt {folded.prompt.shape} and a delta "
        f"{folded.delta.shape}; this run needs {expected[0]} and {expected[1]}. Set "
        "SHORT_LENGTH and SOURCE_LENGTH to the prompt's."
      )
    if not self.rank:
      raise UserError(
        f"'{start.name}' updates the source's embeddings (its delta), which a prompt of "
        "rank 0 cannot do. Give a rank above 0."
      )
    leaves["short_prompt"] = np.asarray(folded.prompt, np.float32)
    if self.fusion_width:
      leaves["fusion_gamma"] = np.zeros((), np.float32)
    return leaves | equations.truncate(folded.delta, self.rank, self.alpha)

  def provenance(self, initial: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the fields of `Provenance` for a prompt that starts from these parameters."""
    folded = equations.fold_exactly(initial, self.alpha)
    return {
      "method": "ept" if self.fusion_width or self.spaces else "dept",
      "space": "factor",
      "alpha": self.alpha,
      "initial_folded_digest": identity.prompt_digest(folded.leaves()),
    }

  def _decompose(
    self, long_prompt: np.ndarray, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    if long_prompt.shape[1] != self.features:
      raise UserError(
        f"The initial prompt has {long_prompt.shape[1]} features, the backbone's tokens "
        f"{self.features}. Take a prompt that was made on this backbone."
      )
    return equations.decompose(
      long_prompt, self.length, self.source_length, self.rank, rng, self.decomposition
    )

  def _refuse_other(
    self, name: str, given: Mapping[str, np.ndarray], alpha: float | None
  ) -> None:
    here = {name: form.shape for name, form in self.parameters().items()}
    there = {name: leaf.shape for name, leaf in given.items()}
    if leaf := identity.first_difference(here, there):
      raise UserError(
        f"'{name}' holds an EPT prompt of another form: {leaf} is {there.get(leaf)} "
        f"there, {here.get(leaf)} in this run. Use its form, or fold it first (tpv "
        "fold) to have it refactored."
      )
    if alpha != self.alpha:
      raise UserError(
        f"'{name}' was trained with alpha {alpha}, this run has {self.alpha}: the same "
        "parameters would mean another update. Set EPT.alpha to the prompt's."
      )


def _draw(form: equations.Parameter, rng: np.random.Generator) -> np.ndarray:
  drawn = form.constant + form.std * rng.standard_normal(form.shape)
  return np.asarray(drawn, np.float32)


def _initializer(name: str, form: equations.Parameter) -> nn.initializers.Initializer:
  if name == "short_prompt":
    return plain.uniform
  if form.std:
    return nn.initializers.normal(form.std)
  return nn.initializers.constant(form.constant)
