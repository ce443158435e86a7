"""The model that both runners call: it owns loss, prediction and scoring.

It has the members that T5X calls (by duck typing) and imports neither T5X nor seqio nor
TensorFlow. The loss is that of docs/methods.md, (6.1) to (6.4). What a batch contains, and
how a prompt is prepended to it, depends on the backbone's architecture and is defined in
its module (`encoder_decoder`, `decoder_only`).
"""

import copy
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tpv_jax.backbones import decoding, quantization
from tpv_jax.backbones.protocol import Architecture, Network
from tpv_jax.core import identity
from tpv_jax.core.checks import (
  BelowOne,
  Lengths,
  NotNegative,
  Seed,
  Share,
  Size,
  checked,
)
from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.data.batches import is_padding
from tpv_jax.decoder_only import DecoderOnly
from tpv_jax.devices import partitioning
from tpv_jax.devices.averages import Average
from tpv_jax.encoder_decoder import EncoderDecoder
from tpv_jax.prompts.equations import Folded
from tpv_jax.prompts.protocol import SoftPrompt, refuse_source_reading

Params = Mapping[str, Any]
Batch = Mapping[str, Any]
Metrics = dict[str, Average]
Leaves = dict[str, Any]
"""Leaves by path, "a/b/c" -> array."""

LOGITS_AT_ONCE = 2**23
"""The most logits that the loss computes at a time, 32 MiB of fp32 (ours)."""

ARCHITECTURES: dict[str, Any] = {
  "encoder_decoder": EncoderDecoder,
  "decoder_only": DecoderOnly,
}
"""A network's ARCHITECTURE -> the class that feeds batches to it."""

PROMPT = "prompt"
"""Top-level key of the soft prompt's parameters, beside the backbone's."""


class SoftPromptModel:
  """A frozen backbone with a soft prompt; leaves that match `trainable` are trained.

  It is hashed by identity, so that jitted functions may close over its methods.

  Attributes:
    network: the backbone.
    prompt: the soft prompt that is trained. If None, a folded prompt is read from
      `params["prompt"]` if that exists (evaluation), with the leaves 'prompt' [P, D] and
      optionally 'delta' [M, D]; otherwise the model is the backbone alone (pre-training,
      "no prompt").
    input_vocabulary: of the source.
    output_vocabulary: of the targets; its `end_ids` end decoding.
    optimizer_def: handed to T5X; the standalone runner reads it too.
    trainable: regular expression that must match a leaf's whole path for it to be trained.
    z_loss: weight of log(Z)^2, added to each token's loss, (6.3).
    label_smoothing: probability spread over the wrong tokens, (6.2).
    choice: how the tokens of an answer are chosen.
    loss_on_sources: whether the loss is on source tokens as well as on targets, (11.4);
      only decoder-only models predict them.
    lengths: of sources and targets, in tokens: where a batch has both in one row, as T5X's
      of decoder-only models, they are told apart by it (`decoder_only.apart`).
  """

  @checked
  def __init__(
    self,
    network: Network,
    prompt: SoftPrompt | None,
    input_vocabulary: Any,
    output_vocabulary: Any,
    optimizer_def: Any = None,
    trainable: str = r"prompt/.*",
    z_loss: NotNegative = 0.0,
    label_smoothing: BelowOne = 0.0,
    num_beams: Size = 1,
    length_penalty: float = 1.0,
    loss_on_sources: bool = False,
    lengths: Lengths | None = None,
    temperature: NotNegative = 0.0,
    top_p: Share = 1.0,
    sampling_seed: Seed = 0,
  ):
    """See the attributes, and `decoding.Choice` for `num_beams` and what is like it."""
    if loss_on_sources and not ARCHITECTURES[network.ARCHITECTURE].PREDICTS_SOURCES:
      raise UserError(
        "LOSS_ON_SOURCES = True asks for a loss on source tokens, which an encoder-decoder "
        "does not predict. Set it to False, or choose a decoder-only backbone."
      )
    refuse_misfit(prompt, network)
    try:
      re.compile(trainable)
    except re.error as error:
      raise UserError(
        f"trainable = '{trainable}' is no regular expression ({error}). To train the "
        "prompt only, write 'prompt/.*'."
      ) from error
    self.network = network
    self.prompt = prompt
    self.input_vocabulary = input_vocabulary
    self.output_vocabulary = output_vocabulary
    self.optimizer_def = optimizer_def
    self.trainable = trainable
    self.z_loss = z_loss
    self.label_smoothing = label_smoothing
    self.choice = decoding.Choice(
      num_beams, length_penalty, temperature, top_p, sampling_seed
    )
    self.loss_on_sources = loss_on_sources
    self.lengths = lengths
    eos_id = getattr(output_vocabulary, "eos_id", None)
    eos_id = 1 if eos_id is None else int(eos_id)
    self._end_ids = tuple(getattr(output_vocabulary, "end_ids", (eos_id,)))
    self._unk_id = getattr(output_vocabulary, "unk_id", None)

  def with_prompt(self, prompt: SoftPrompt | None) -> "SoftPromptModel":
    """Returns the same model with another prompt.

    Raises:
      UserError: the prompt has another width than the backbone.
    """
    refuse_misfit(prompt, self.network)
    made = copy.copy(self)
    made.prompt = prompt
    return made

  @property
  def architecture(self) -> Architecture:
    """What feeds batches to the network."""
    made: Architecture = ARCHITECTURES[self.network.ARCHITECTURE](
      self.network, self.lengths
    )
    return made

  @property
  def FEATURE_CONVERTER_CLS(self) -> Any:  # noqa: N802 (T5X's name)
    """seqio's converter for this architecture; call it with `pack=False`."""
    return self.architecture.feature_converter()

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Returns fresh `params` and their logical axes, `params_axes`.

    Neither depends on the shapes of a batch, because no backbone has absolute positions:
    `input_shapes` and `input_types`, which T5X passes, are not used. The prompt depends on
    `rng` only, not on the backbone or the number of devices.
    """
    del input_shapes, input_types
    network_rng, prompt_rng = jax.random.split(rng)
    variables = self.network.init(network_rng, *self.network.init_inputs())
    params, axes = dict(variables["params"]), dict(variables["params_axes"])
    if self.prompt is not None:
      variables = self.prompt.init(prompt_rng)
      params[PROMPT] = variables["params"]
      axes[PROMPT] = variables["params_axes"]
    return {"params": params, "params_axes": axes}

  def split(self, params: Params) -> tuple[Leaves, Leaves]:
    """Returns the trainable and the frozen leaves, by path.

    Raises:
      UserError: `trainable` matches no leaf, or only some of the prompt's: a prompt's
        files hold the trained leaves, and would lack the others. Or it matches a leaf that
        is quantised.
    """
    flat = identity.flatten(params)
    trainable = {path: leaf for path, leaf in flat.items() if self._trains(path)}
    if not trainable:
      raise UserError(
        f"The pattern '{self.trainable}' matches none of the {len(flat)} parameters: "
        "nothing would be trained. SoftPromptModel.trainable must match whole paths, "
        f"such as '{next(iter(flat))}'." + near_misses(self.trainable, flat)
      )
    quantization.refuse_training(self.network, trainable)
    prompt = [path for path in flat if path.startswith(f"{PROMPT}/")]
    left = [path for path in prompt if path not in trainable]
    if left and len(left) < len(prompt):
      raise UserError(
        f"TRAINABLE = '{self.trainable}' trains a part of the prompt and not '{left[0]}', "
        "which the prompt's files would lack, as they hold what is trained. Write "
        "'prompt/.*', and give a group that stays as it is the rate 0 (GROUP_RATES)."
      )
    return trainable, {path: flat[path] for path in flat if path not in trainable}

  def merge(self, trainable: Leaves, frozen: Leaves) -> dict[str, Any]:
    """Returns the nested parameters of both, the inverse of `split`."""
    return identity.unflatten({**frozen, **trainable})

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weighted mean loss over target tokens, (6.4), and the batch's metrics.

    Frozen leaves are behind `stop_gradient`: their gradients are exactly zero and cost
    nothing. The metrics are means that can be merged across batches: `loss` and `accuracy`
    over target tokens, `exact_match` over rows, (8.3).

    Args:
      params: the backbone's parameters and the prompt's.
      batch: see `encoder_decoder`.
      dropout_rng: None for no dropout.
    """
    loss_sum, weight_sum, metrics = self.loss_sums(params, batch, dropout_rng)
    return jnp.sum(loss_sum / divisor(weight_sum)), metrics

  def weight_sums(self, batch: Batch) -> Float[Array, "..."]:
    """Returns the summed weights that `loss_sums` returns, without computing the loss."""
    return jnp.sum(self.architecture.targets(batch, self.loss_on_sources).weights)

  def loss_sums(
    self,
    params: Params,
    batch: Batch,
    dropout_rng: Array | None = None,
    folded: Folded | None = None,
  ) -> tuple[Float[Array, "..."], Float[Array, "..."], Metrics]:
    """Returns the weighted losses and the weights, both summed over target tokens (fp32).

    With `loss_on_sources` source tokens count as target tokens, except in `exact_match`.

    Unlike means, sums can be added over devices and micro-batches. Here they are scalars;
    a bank has one for each prompt.

    Args:
      params: the backbone's parameters and the prompt's.
      batch: see `encoder_decoder`.
      dropout_rng: None for no dropout.
      folded: the folded prompt, if it was computed before; the prompt's parameters are
        not used then.
    """
    flat = identity.flatten(params)
    params = identity.unflatten(
      {
        path: leaf if self._trains(path) else jax.lax.stop_gradient(leaf)
        for path, leaf in flat.items()
      }
    )
    if folded is None:
      folded = self.fold(params)
    # Again, for a prompt that was passed folded: its gradient then lies whole too.
    folded = _on_every_device(folded)
    states = self.architecture.states(
      _backbone(params), folded, batch, dropout_rng, self.loss_on_sources
    )
    targets, weights, _, _, first = self.architecture.targets(
      batch, self.loss_on_sources
    )
    losses, hits = self._losses(
      params, states, targets, self.label_smoothing, self.z_loss
    )
    loss_sum, weight_sum = jnp.sum(losses * weights), jnp.sum(weights)
    answers, counted = targets[:, first:], weights[:, first:] > 0
    ended = jnp.any(counted & self._ends(answers), axis=-1)
    written = self._written(answers, hits[:, first:])
    right = ended & jnp.all(written | ~counted, axis=-1)
    metrics: Metrics = {
      "loss": Average(total=loss_sum, count=weight_sum),
      "accuracy": Average(total=jnp.sum(hits * weights), count=weight_sum),
      # What greedy decoding would get right, (8.3); see
      # `data.metrics.classes.exact_match`.
      "exact_match": Average(
        total=jnp.sum(right), count=jnp.sum(jnp.any(counted, axis=-1))
      ),
    }
    return loss_sum, weight_sum, metrics

  def fold(self, params: Params) -> Folded | None:
    """Returns the folded prompt, None without a prompt.

    Its arrays are whole on each device, however the parameters are sharded.
    """
    return _on_every_device(self._fold(params))

  def fold_once(
    self, trainable: Leaves, frozen: Leaves
  ) -> tuple[tuple[Folded | None, Leaves], Callable[[tuple[Any, Leaves]], Leaves]]:
    """Returns the folded prompt with the other trainable leaves, and its pull-back.

    With these a step folds the prompt once, and takes the gradient of its parameters once,
    whatever the number of micro-batches. Of a prompt that is sharded over devices only the
    folded arrays are ever gathered.

    Args:
      trainable: leaves, see `split`.
      frozen: leaves.

    Returns:
      The values with respect to which a loss is to be differentiated; and the function
      that maps this gradient to that of the trainable leaves.
    """
    prompt = {p: leaf for p, leaf in trainable.items() if p.startswith(f"{PROMPT}/")}
    others = {p: leaf for p, leaf in trainable.items() if p not in prompt}
    folded, pull_back = jax.vjp(lambda own: self._fold(self.merge(own, frozen)), prompt)

    def back(gradient: tuple[Any, Leaves]) -> Leaves:
      of_folded, of_others = gradient
      return {**of_others, **pull_back(of_folded)[0]}

    return (_on_every_device(folded), others), back

  def fold_bank(self, prompts: Params) -> Folded:
    """Returns N prompts folded from their stacked parameters: [N, S, D] and [N, M, D].

    The arrays are sharded over devices as the parameters are.
    """
    prompt = self.prompt
    assert prompt is not None
    folded: Any = jax.vmap(lambda one: prompt.apply({"params": one}))(prompts)
    return folded

  def bank_loss_sums(
    self,
    folded: Folded,
    backbone: Params,
    batch: Batch,
  ) -> tuple[Float[Array, " N"], dict[str, Float[Array, " N"]]]:
    """Returns the loss of each prompt of a bank, summed over its target tokens (fp32).

    There is no dropout: the prompts of a row would share its mask.

    Also returns counts for each prompt: `target_tokens`, weighted, and how many of them are
    right (`accuracy`); `examples`, and how many have all tokens right (`exact_match`).

    Args:
      folded: the prompts [N, S, D], and optionally deltas [N, M, D].
      backbone: the frozen parameters; a prompt among them is ignored.
      batch: packed rows, see `data.packing.pack`; or rows of one example each, with the
        index of each row's prompt in the bank as `prompt_ids` [B].
    """
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    folded = _on_every_device(folded)
    backbone = jax.lax.stop_gradient(_backbone(backbone))
    with_sources = self.loss_on_sources
    targets, weights, segments, prompt, first = self.architecture.targets(
      batch, with_sources
    )
    if "prompt_ids" in batch:
      ids = batch["prompt_ids"].astype(jnp.int32)
      states = self.architecture.states(
        backbone, _rows(folded, ids), batch, with_sources=with_sources
      )
      segments = (weights > 0).astype(jnp.int32)
      prompt = jnp.broadcast_to(ids[:, None], targets.shape)
    else:
      states = self.architecture.packed_states(backbone, folded, batch, with_sources)
    assert segments is not None  # of packed rows
    assert prompt is not None
    losses, hits = self._losses(
      backbone, states, targets, self.label_smoothing, self.z_loss
    )

    # 1. Number the examples of all rows; in each row, segment 0 is padding.
    rows, length = targets.shape
    example = jnp.arange(rows)[:, None] * (length + 1) + segments

    def by_example(values: Array) -> Array:
      return jax.ops.segment_sum(
        values.reshape(-1), example.reshape(-1), num_segments=rows * (length + 1)
      )

    # 2. Sum what belongs to one prompt, whichever rows it is in.
    def by_prompt(values: Array, prompt: Array) -> Float[Array, " N"]:
      return jax.ops.segment_sum(
        values.reshape(-1).astype(jnp.float32),
        prompt.reshape(-1),
        num_segments=len(folded.prompt),
      )

    # 3. An example is right, (8.3), if it ended and all of its weight is on right tokens.
    answers = jnp.where(jnp.arange(length) >= first, weights, 0.0)
    size = by_example(answers)
    owner = jax.ops.segment_max(
      prompt.reshape(-1), example.reshape(-1), num_segments=len(size)
    ).clip(0)
    ended = by_example(answers * self._ends(targets)) > 0
    right = ended & (by_example(answers * self._written(targets, hits)) == size)
    return by_prompt(losses * weights, prompt), {
      "target_tokens": by_prompt(weights, prompt),
      "accuracy": by_prompt(hits * weights, prompt),
      "examples": by_prompt(size > 0, owner),
      "exact_match": by_prompt(right, owner),
    }

  def score_choices(
    self, folded: Folded, backbone: Params, batch: Batch
  ) -> tuple[Float[Array, "B choices"], Bool[Array, "B choices"]]:
    """Returns each choice's log-probability (fp32), (8.1), and if greedy decoding writes it.

    Greedy decoding writes a choice if and only if each of its tokens is the arg max after
    the ones before it, (8.3); never one without EOS or with unknown tokens. A choice is a
    segment of a target row, and the segment's number is its column in the result; column 0
    and the columns after a row's last choice are meaningless. The choices of an example
    share its source, which is encoded once; each has the numbers that it would have in a
    target row of its own.

    Args:
      folded: the prompts of a bank [N, S, D], and optionally deltas [N, M, D].
      backbone: the backbone's parameters.
      batch: packed rows, see `data.packing.pack_choices`.
    """
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    targets, _, segments, *_ = self.architecture.targets(batch)
    states = self.architecture.packed_states(_backbone(backbone), folded, batch)
    losses, hits = self._losses(backbone, states, targets)
    assert segments is not None  # of packed rows
    counted = ~is_padding(targets)

    def by_choice(values: Array) -> Array:
      add = functools.partial(jax.ops.segment_sum, num_segments=targets.shape[1] + 1)
      return jax.vmap(add)(values, segments)

    misses = by_choice((counted & ~self._written(targets, hits)).astype(jnp.int32))
    ends = by_choice(self._ends(targets).astype(jnp.int32))
    return by_choice(jnp.where(counted, -losses, 0.0)), (misses == 0) & (ends > 0)

  def score_rows(
    self, folded: Folded, backbone: Params, batch: Batch
  ) -> Float[Array, " B"]:
    """Returns each row's target log-probability, summed over its tokens (fp32).

    Args:
      folded: each row's own prompt [B, S, D], and perhaps delta [B, M, D]; or one that all
        rows share, [S, D].
      backbone: the frozen parameters.
      batch: rows of one example each; a row of padding scores 0.
    """
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    backbone = jax.lax.stop_gradient(_backbone(backbone))
    states = self.architecture.states(backbone, _on_every_device(folded), batch)
    targets, weights, *_ = self.architecture.targets(batch)
    return -jnp.sum(self._losses(backbone, states, targets)[0] * weights, axis=-1)

  def predict_rows(
    self,
    folded: Folded,
    backbone: Params,
    batch: Batch,
    target_length: int,
  ) -> Int[Array, "B L"]:
    """Returns the decoded tokens of rows, each behind its own prompt of a bank.

    Args:
      folded: the prompts of a bank [N, S, D], and optionally deltas [N, M, D].
      backbone: the backbone's parameters.
      batch: sources; `prompt_ids` [B], the index of each row's prompt in the bank; and
        `example_ids` [B], by which tokens are drawn.
      target_length: L, the most tokens to write.
    """
    rows = _rows(folded, jnp.asarray(batch["prompt_ids"]))
    return self._decode(backbone, rows, batch, target_length)[0]

  def begin_rows(
    self, folded: Folded, backbone: Params, batch: Batch, target_length: int
  ) -> tuple[Any, decoding.Written]:
    """Returns a cache, and what `write_token` continues; then rows grow token by token.

    Args: see `predict_rows`, whose tokens these are; one beam only.
    """
    rows = _rows(folded, jnp.asarray(batch["prompt_ids"]))
    cache, empty, _ = self._start(backbone, rows, batch, target_length)
    written = decoding.begin(cache, empty, self.choice, self._examples(batch))
    return cache, written

  def write_token(
    self, backbone: Params, cache: Any, written: decoding.Written
  ) -> decoding.Written:
    """Returns what is written with one token more, see `decoding.write_token`."""
    return decoding.write_token(
      self.network, _backbone(backbone), cache, written, self._end_ids, self.choice
    )

  def eval_fn(self, params: Params, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
    """Returns loss and metrics as `loss_fn` does, without dropout."""
    return self.loss_fn(params, batch, None)

  def predict_batch(
    self, params: Params, batch: Batch, rng: Array | None = None
  ) -> Int[Array, "B L"]:
    """Returns the decoded tokens; see `predict_batch_with_aux`."""
    return self.predict_batch_with_aux(params, batch, rng)[0]

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Int[Array, "B L"], dict[str, Float[Array, " B"]]]:
    """Returns the decoded tokens, 0 after the end token, and their `scores`.

    Greedy decoding scores a row by the sum of its tokens' log-probabilities. With several
    beams the best beam is returned, and its sum is divided by its length as
    `decoding.beam_search` says. At most as many tokens are written as the batch's targets
    have positions. `rng`, which T5X passes, is not used: what is drawn depends on the seed
    and on the numbers of the examples only.
    """
    del rng
    tokens, scores = self._decode(params, self._folded_alone(params), batch)
    return tokens, {"scores": scores}

  def score_batch(
    self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> Float[Array, " B"] | tuple[Float[Array, " B"], dict[str, Any]]:
    """Returns each row's target log-probabilities, weighted and summed (fp32).

    With `return_intermediates`, also T5X's tree of per-token values, `{'decoder':
    {'target_tokens', 'loss_weights', 'token_scores'}}`, each in a tuple of length one.
    """
    states = self._states(params, batch, None)
    targets, weights, *_ = self.architecture.targets(batch)
    token_scores = -self._losses(params, states, targets)[0] * weights
    scores = jnp.sum(token_scores, axis=-1)
    if not return_intermediates:
      return scores
    return scores, {
      "decoder": {
        "target_tokens": (targets,),
        "loss_weights": (weights,),
        "token_scores": (token_scores,),
      }
    }

  def _written(
    self, targets: Int[Array, "B L"], hits: Bool[Array, "B L"]
  ) -> Bool[Array, "B L"]:
    """Returns which target tokens greedy decoding writes: the hits, but never `<unk>`."""
    return hits if self._unk_id is None else hits & (targets != self._unk_id)

  def _ends(self, tokens: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Returns which tokens end an answer."""
    return jnp.isin(tokens, jnp.asarray(self._end_ids))

  def _trains(self, path: str) -> bool:
    return re.fullmatch(self.trainable, path) is not None

  def _fold(self, params: Params) -> Folded | None:
    """Returns the result of `fold`, sharded over devices as the parameters are."""
    if self.prompt is not None:
      folded: Any = self.prompt.apply({"params": params[PROMPT]})
      return folded
    return Folded.of(params[PROMPT]) if PROMPT in params else None

  def _apply(self, params: Params, *inputs: Any, **options: Any) -> Any:
    return self.network.apply({"params": _backbone(params)}, *inputs, **options)

  def target_logits(
    self, folded: Folded, backbone: Params, batch: Batch
  ) -> Float[Array, "B L V"]:
    """Returns the fp32 logits at every target position behind a folded prompt."""
    states = self.architecture.states(backbone, folded, batch)
    return self._apply(backbone, states, method=self.network.logits)

  def _folded_alone(self, params: Params) -> Folded | None:
    """Returns the one folded prompt that all rows share."""
    return self.fold(params)

  def _decode(
    self,
    params: Params,
    folded: Folded | None,
    batch: Batch,
    target_length: int | None = None,
  ) -> tuple[Int[Array, "B L"], Float[Array, " B"]]:
    """Returns the tokens [B, L] and the score of each row, see `decoding.decode`."""
    cache, empty, target_length = self._start(params, folded, batch, target_length)
    return decoding.decode(
      self.network,
      _backbone(params),
      cache,
      empty,
      target_length,
      self._end_ids,
      self.choice,
      self._examples(batch),
    )

  def _start(
    self,
    params: Params,
    folded: Folded | None,
    batch: Batch,
    target_length: int | None = None,
  ) -> tuple[Any, Bool[Array, " B"], int]:
    return self.architecture.start_decoding(
      _backbone(params), folded, batch, target_length
    )

  def _examples(self, batch: Batch) -> Int[Array, " B"] | None:
    """Returns the numbers of the examples, which decide what is drawn for them."""
    if not self.choice.temperature:
      return None
    if "example_ids" not in batch:
      raise UserError(
        f"TEMPERATURE = {self.choice.temperature:g} draws answers by the number of each "
        "example, and these batches do not state it. Answer with 'tpv infer' or 'tpv "
        "eval', or set TEMPERATURE = 0."
      )
    return jnp.asarray(batch["example_ids"]).astype(jnp.int32)

  def _states(
    self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> Float[Array, "B L D"]:
    """Returns the decoder's states, which the network's `logits` maps to logits."""
    folded = self._folded_alone(params)
    return self.architecture.states(_backbone(params), folded, batch, dropout_rng)

  def _losses(
    self,
    params: Params,
    states: Float[Array, "B L D"],
    targets: Int[Array, "B L"],
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
  ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Returns each token's loss, see `token_losses`, and whether decoding would write it.

    If there are more than `LOGITS_AT_ONCE` logits, they are computed for some target
    positions at a time, and again in the backward pass, so that they are never all in
    memory. The numbers are the same.
    """

    def part(
      states: Float[Array, "B part D"], targets: Int[Array, "B part"]
    ) -> tuple[Float[Array, "B part"], Bool[Array, "B part"]]:
      logits = self._apply(params, states, method=self.network.logits)
      losses = token_losses(
        logits, targets, label_smoothing, z_loss, self.network.FIRST_ID
      )
      best = jnp.argmax(logits, axis=-1)
      # Any end token ends an answer as well as the target's own.
      return losses, (best == targets) | (self._ends(best) & self._ends(targets))

    rows, length = targets.shape
    at_once = max(1, LOGITS_AT_ONCE // (rows * self.network.vocab_size))
    if length <= at_once:
      return part(states, targets)
    parts = math.ceil(length / at_once)
    at_once = math.ceil(length / parts)

    def split(x: Array) -> Array:
      x = jnp.pad(x, ((0, 0), (0, parts * at_once - length), *[(0, 0)] * (x.ndim - 2)))
      return x.reshape(rows, parts, at_once, *x.shape[2:]).swapaxes(0, 1)

    def join(x: Array) -> Array:
      return x.swapaxes(0, 1).reshape(rows, parts * at_once)[:, :length]

    losses, hits = jax.lax.map(
      lambda one: jax.checkpoint(part)(*one), (split(states), split(targets))
    )
    return join(losses), join(hits)


def refuse_misfit(prompt: SoftPrompt | None, network: Network) -> None:
  """Raises `UserError` if a prompt is of no form that a model has, or of another width."""
  if prompt is None:
    return
  if prompt.features != network.emb_dim:
    raise UserError(
      f"The prompt's rows have {prompt.features} features, the backbone's tokens "
      f"{network.emb_dim}. Set the prompt's features to {network.emb_dim}."
    )
  refuse_source_reading(prompt)


def divisor(weight_sum: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns what (6.4) divides by: the summed weights, or 1 where there are none."""
  return jnp.where(weight_sum > 0, weight_sum, 1.0)


def token_losses(
  logits: Float[Array, "B L V"],
  targets: Int[Array, "B L"],
  label_smoothing: float = 0.0,
  z_loss: float = 0.0,
  first_id: int = 0,
) -> Float[Array, "B L"]:
  """Returns each target token's cross-entropy in nats (fp32), padding tokens included.

  docs/methods.md, (6.1) to (6.3). With `label_smoothing` s the target keeps probability
  1 - s, the other V - 1 tokens share s, and the entropy of that distribution is subtracted,
  so that the least possible loss is 0 (as in T5X). `z_loss` adds `z_loss * log(Z)^2`.
  The logits of ids below `first_id` are minus infinity: no token has them, and the loss of
  such a target means nothing (but is finite, for a weight of 0).
  """
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  # A masked sum instead of a gather: it stays local when the vocabulary is sharded.
  ids = jnp.arange(logits.shape[-1])
  hit = (ids == targets[..., None]) & (ids >= first_id)
  target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
  losses = log_z - target
  if label_smoothing:
    vocabulary = logits.shape[-1] - first_id
    kept, other = 1.0 - label_smoothing, label_smoothing / (vocabulary - 1)
    total = jnp.sum(logits[..., first_id:], axis=-1)
    others = (vocabulary - 1) * log_z - (total - target)
    entropy = -kept * math.log(kept) - label_smoothing * math.log(other)
    losses = kept * losses + other * others - entropy
  if z_loss:
    losses = losses + z_loss * jnp.square(log_z)
  return losses


def _on_every_device(folded: Any) -> Any:
  """Returns the arrays of a folded prompt whole on each device, if rules are in force.

  So are their gradients. Otherwise XLA would shard activations as the prompt is sharded.
  """
  return jax.tree.map(lambda x: partitioning.constrain(x, *[None] * x.ndim), folded)


def _rows(folded: Folded, ids: Int[Array, " B"]) -> Folded:
  """Returns each row's prompt, [B, S, D], and its delta if there is one."""
  return Folded(*(None if x is None else x[ids] for x in folded))


def _backbone(params: Params) -> dict[str, Any]:
  return {name: tree for name, tree in params.items() if name != PROMPT}
