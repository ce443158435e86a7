"""A bank under T5X: many prompts in one run, each with its own data set.

A mixture of seqio draws its tasks at random, so the number of a prompt's rows in a batch
would be random. Here each prompt has the batches that its own run would have, the same
rows in the same order; a batch of the bank concatenates one batch of each prompt, and
`prompt_ids` gives the prompt of each row (`datasets`). So a bank of N equals N runs, up to
the order of fp32 sums. Rows hold one example each and are padded as T5X pads them; only
the standalone runner packs.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata
from jaxtyping import Array, Float

from tpv_jax.banks.grid import check_lists, name_of
from tpv_jax.core.errors import UserError
from tpv_jax.data.tasks import Task
from tpv_jax.data.vocabularies import Vocabulary
from tpv_jax.devices.averages import Average
from tpv_jax.model import PROMPT, Batch, Metrics, Params, SoftPromptModel
from tpv_jax.prompts.equations import Folded
from tpv_jax.t5x import tasks as tasks_of_t5x
from tpv_jax.t5x.optimizer import TransformationOptimizer

BANK = "bank"
"""The logical axis of the prompts, the first axis of each trained leaf."""


@dataclasses.dataclass(frozen=True)
class Member:
  """One prompt of a bank.

  Attributes:
    name: of its folder in MODEL_DIR, and of its metrics.
    task: names its term in the provenance.
    mixture: the task or mixture of seqio that it is trained on.
    initial_seed: of its initial prompt.
    seed: of the order of its examples.
    rate: a factor of the learning rate.
  """

  name: str
  task: str
  mixture: str
  initial_seed: int = 0
  seed: int = 0
  rate: float = 1.0


def grid(
  tasks: Sequence[Any],
  vocabulary: Vocabulary,
  initial_seeds: Sequence[int] = (0,),
  rates: Sequence[float] = (1.0,),
  modules: Sequence[str] = (),
) -> list[Member]:
  """Returns a member for each task, initial prompt and learning rate.

  They are named like the run folders of the standalone runner's `bank.grid`; the initial
  seed also orders the examples.

  Args:
    tasks: `Task`s, registered with seqio if needed, or names that seqio knows.
    vocabulary: the backbone's.
    initial_seeds: of the initial prompts.
    rates: factors of the learning rate.
    modules: imported first, so that seqio knows the names.

  Raises:
    UserError: one of the lists is not a list, is empty, or has an invalid entry; or seqio
      does not know a task, or its ids would mean other words.
  """
  check_lists(tasks, initial_seeds, rates, (Task, str))
  members = []
  for task in tasks:
    if isinstance(task, str):
      mixture = tasks_of_t5x.named(task, vocabulary, modules)
      name = tasks_of_t5x.name_of(mixture)
    else:
      mixture, name = tasks_of_t5x.registered(task, vocabulary), task.name
    for seed, rate in itertools.product(initial_seeds, rates):
      folder = name_of(name, seed, rate if len(rates) > 1 else None)
      members.append(Member(folder, name, mixture, seed, seed, rate))
  return members


def rows(members: Sequence[Member], batch_size: int) -> int:
  """Returns the rows of a bank's batch, `batch_size` of each prompt."""
  return len(members) * batch_size


class Bank(SoftPromptModel):
  """The model of a bank: `params["prompt"]` holds all its prompts, stacked [N, ...].

  Attributes:
    members: the prompts, in their order.
  """

  def __init__(self, model: SoftPromptModel, members: Sequence[Member]):
    """Takes all that the model has, with its optimizer acting on each prompt alone.

    Raises:
      UserError: the model has no prompt or has dropout, or two members have one name.
    """
    if model.prompt is None:
      raise UserError(
        "A bank trains prompts. Include a prompt file of gin_configs/prompts, such as "
        "plain.gin."
      )
    if model.network.dropout_rate:
      raise UserError(
        "A bank trains without dropout, as in the standalone runner. Set "
        "DROPOUT_RATE to 0."
      )
    if not members:
      raise UserError("The bank is empty. Give at least one prompt.")
    names = [member.name for member in members]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
      raise UserError(
        f"{len(twice)} prompts of the bank share a name, such as '{twice[0]}', and so a "
        "folder. Give each task, seed and rate once."
      )
    vars(self).update(vars(model))
    self.optimizer_def = TransformationOptimizer(
      model.optimizer_def.transformation,
      model.optimizer_def.trainable,
      [member.rate for member in members],
    )
    self.members = tuple(members)

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, Any],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, Any]:
    """Returns the model's variables with N copies of its prompt, for `Initializer` to fill.

    Raises:
      UserError: something other than prompts would be trained.
    """
    variables = super().get_initial_variables(rng, input_shapes, input_types)
    params, axes = variables["params"], variables["params_axes"]
    trainable, _ = self.split(params)
    other = [path for path in trainable if not path.startswith(f"{PROMPT}/")]
    if other:
      raise UserError(
        f"A bank trains prompts on one frozen backbone; TRAINABLE = '{self.trainable}' "
        f"also matches '{other[0]}'. Set it to 'prompt/.*'."
      )
    count = len(self.members)
    params[PROMPT] = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), params[PROMPT]
    )
    axes[PROMPT] = jax.tree.map(
      lambda leaf: AxisMetadata(names=(BANK, *leaf.names)),
      axes[PROMPT],
      is_leaf=lambda leaf: isinstance(leaf, AxisMetadata),
    )
    return {"params": params, "params_axes": axes}

  def weight_sums(self, batch: Batch) -> Float[Array, " N"]:
    """Returns the sum of the weights of each prompt's target tokens."""
    weights = self.architecture.targets(batch, self.loss_on_sources).weights
    ids = jnp.asarray(batch["prompt_ids"]).astype(jnp.int32)
    return jax.ops.segment_sum(weights.sum(axis=-1), ids, len(self.members))

  def loss_sums(
    self,
    params: Params,
    batch: Batch,
    dropout_rng: Array | None = None,
    folded: Folded | None = None,
  ) -> tuple[Float[Array, " N"], Float[Array, " N"], Metrics]:
    """Returns each prompt's loss and weights, summed over its own target tokens (fp32).

    Each metric is given over all rows, and as <metric>/<member> over a prompt's rows.
    """
    del dropout_rng  # There is no dropout.
    folded = self._fold(params) if folded is None else folded
    losses, counts = self.bank_loss_sums(folded, params, batch)
    weights = counts["target_tokens"]
    metrics: Metrics = {}
    for name, totals, counted in (
      ("loss", losses, weights),
      ("accuracy", counts["accuracy"], weights),
      ("exact_match", counts["exact_match"], counts["examples"]),
    ):
      metrics[name] = Average(total=totals.sum(), count=counted.sum())
      for i, member in enumerate(self.members):
        metrics[f"{name}/{member.name}"] = Average(total=totals[i], count=counted[i])
    return losses, weights, metrics

  def _fold(self, params: Params) -> Folded:
    return self.fold_bank(params[PROMPT])

  def _folded_alone(self, params: Params) -> NoReturn:
    """Raises `UserError`: the rows of T5X's inference do not name their prompt."""
    raise UserError(
      "A bank under T5X neither generates nor scores. Leave infer_eval_dataset_cfg None, "
      "and evaluate each prompt by its folder: --gin.PROMPT_PATH='\"MODEL_DIR/<prompt>\"'."
    )
