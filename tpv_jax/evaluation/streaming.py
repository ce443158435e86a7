"""One answer at a time, token by token, as it is written."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from tpv_jax.data import batches
from tpv_jax.evaluation.evaluator import Evaluator, Prompt

SHORTEST = 16
"""No source's row is shorter; each of the others is twice as wide as the one before (ours)."""

_HELD_BACK = "\ufffd"
"""What stands for bytes that are no whole character yet."""


class Writer:
  """Writes answers behind one prompt, with what an evaluator has on the devices.

  Sources have a few widths, each compiled when it is first needed.
  """

  def __init__(self, evaluator: Evaluator, prompt: Prompt):
    """Puts the prompt on the devices."""
    ((_, self._folded, _),) = evaluator.banks([prompt])
    self._evaluator, self._prompt = evaluator, prompt
    longest, self._most = (evaluator.lengths[name] for name in ("inputs", "targets"))
    self._widths = [longest]
    while self._widths[0] > 2 * SHORTEST:
      self._widths.insert(0, -(-self._widths[0] // 2))
    model = evaluator.model
    self._one_beam = model.choice.num_beams == 1

    def begin(folded: Any, backbone: Any, batch: Any) -> Any:
      evaluator.work.compiled += 1  # Runs only while JAX traces the function.
      return model.begin_rows(folded, backbone, batch, self._most)

    def go_on(backbone: Any, cache: Any, written: Any) -> Any:
      evaluator.work.compiled += 1
      return model.write_token(backbone, cache, written)

    self._begin, self._go_on = jax.jit(begin), jax.jit(go_on)

  def tokens(self, source: Int[np.ndarray, " T"], number: int = 0) -> Iterator[int]:
    """Yields the tokens of an answer as they are written, its end token included.

    They are those that `Evaluator.decode` gives; with several beams they come at once.

    Args:
      source: padded.
      number: of the example, by which tokens are drawn.

    Raises:
      UserError: the answer would follow from nothing at all.
    """
    self._evaluator.refuse_nothing(self._prompt, source[None])
    if not self._one_beam:
      decoded = self._evaluator.decode([(self._prompt, source[None])], [[number]])
      yield from filter(None, decoded[0][0].tolist())
      return
    used = len(batches.without_padding(source))
    width = min(one for one in self._widths if one >= used)
    batch = batches.sources(
      source[None, :width], np.zeros(1, np.int32), np.full(1, number, np.int32)
    )
    backbone = self._evaluator.backbone
    cache, written = self._begin(self._folded, backbone, batch)
    for _ in range(self._most):
      if written.over[0]:
        return
      written = self._go_on(backbone, cache, written)
      yield int(written.last[0])


def growing_text(
  decode: Callable[[list[int]], str], tokens: Iterable[int], left_out: str = ""
) -> Iterator[str]:
  """Yields the parts of a text, each as soon as its tokens tell it.

  Together they are what `decode` gives for all tokens. A character waits for the last of
  its bytes. Should a later token change what was yielded, the whole text follows on a line
  of its own: of LLaMA 2's tokens for single bytes, one that belongs to no character spoils
  those before it.

  Args:
    decode: of a vocabulary.
    tokens: of an answer.
    left_out: what `decode` leaves out at the start once it is whole, as a chat template's
      words in front of an answer.
  """
  ids: list[int] = []
  shown = text = ""
  for token in tokens:
    ids.append(token)
    text = decode(ids)
    sure = text.rstrip(_HELD_BACK)
    if left_out.startswith(sure):
      continue
    if sure != shown and sure.startswith(shown):
      yield sure[len(shown) :]
      shown = sure
  if text != shown:
    yield text[len(shown) :] if text.startswith(shown) else f"\n{text}"
