"""What decoding starts from, for tests that call the functions of `decoding` directly."""

import jax.numpy as jnp


def begin(net, params, encoded, source, length):
  """Returns the cache of an encoder-decoder, and which rows are empty."""
  variables = {"params": params}
  cache = net.apply(variables, encoded, source, length, method=net.start_decoding)
  return cache, jnp.all(jnp.asarray(source) == 0, axis=1)
