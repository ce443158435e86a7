"""Puts soft prompts among embedded tokens, in the same way for every encoder.

docs/methods.md, (1.1) and (2.2); in packed rows (7.2) and (7.4).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tpv_jax.backbones.protocol import AnyArray, Places
from tpv_jax.data.batches import is_padding
from tpv_jax.prompts import equations


def place(
  x: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
  prompt: Float[AnyArray, "*rows P D"] | None,
  delta: Float[AnyArray, "*rows M D"] | None = None,
  places: Places | None = None,
) -> Float[Array, "B joined D"]:
  """Returns the embedded tokens with the delta added and the prompt prepended.

  Args:
    x: the embedded tokens.
    tokens: their ids; padding gets no delta.
    prompt: [P, D] for all rows, or [B, P, D] with one prompt for each row; with `places`
      the prompts of a bank [N, P, D]. The joined sequence has P + T positions.
    delta: added to the tokens by position, [M, D] or [B, M, D]; with `places` [N, M, D].
    places: the positions of a bank's prompts in packed rows; the tokens of these rows
      include the prompts' positions.

  Raises:
    UserError: a source is longer than the delta.
  """
  if places is not None:
    return _place(x, jnp.asarray(prompt), delta, tokens, places)
  if delta is not None:
    x = x + _update(jnp.asarray(delta), tokens).astype(x.dtype)
  if prompt is not None:
    prompt = jnp.asarray(prompt).astype(x.dtype)
    prompt = jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape[-2:]))
    x = jnp.concatenate([prompt, x], axis=1)
  return x


def _update(
  delta: Float[Array, "*rows M D"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """Returns the update that a delta gives each token; 0 at padding."""
  length = tokens.shape[1]
  if length > delta.shape[-2]:
    equations.refuse_short_delta(length, delta.shape[-2])
  return jnp.where(~is_padding(tokens)[:, :, None], delta[..., :length, :], 0)


def _place(
  x: Float[Array, "B W D"],
  prompt: Float[Array, "N P D"],
  delta: Float[AnyArray, "N M D"] | None,
  tokens: Int[Array, "B W"],
  places: Places,
) -> Float[Array, "B W D"]:
  """Returns embedded packed rows with each delta added and each prompt in its place."""
  length, features = prompt.shape[-2:]
  if delta is not None:
    index = places.prompt_ids * delta.shape[1] + places.source_positions
    update = jnp.asarray(delta).reshape(-1, features)[index]
    x = x + jnp.where(~is_padding(tokens)[..., None], update, 0).astype(x.dtype)
  if not length:  # A prompt without rows stands for the backbone alone.
    return x
  index = places.prompt_ids * length + places.prompt_positions - 1
  stands = (places.prompt_positions > 0)[..., None]
  return jnp.where(stands, prompt.reshape(-1, features)[index].astype(x.dtype), x)
