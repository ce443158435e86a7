"""The options of merge rules that read data; `evaluation.merging` computes them."""

import dataclasses
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from tpv_jax.core.checks import Fraction, OneOf, Positive, Seed, Size, Steps
from tpv_jax.core.errors import UserError
from tpv_jax.vectors.merging.protocol import Rule

Split = Annotated[str, OneOf(("train", "validation"))]
"""The split of each task that a rule reads; 'test' is for what was merged."""


@runtime_checkable
class DataRule(Rule, Protocol):
  """A rule that tries the vectors on their backbone, with examples of tasks.

  Attributes:
    computed_by: 'module:function' of what makes its `evaluation.merging.subject.Outcome`
      of the rule and a `Subject`.
    finds_length: whether it also finds how long the merged vector is to be; otherwise a
      coefficient of the result is worth a search.
    split: the split of each task that it reads.
    examples: how many of its first examples are read; None for all.
    needs_labels: whether every task must have labels.
  """

  computed_by: ClassVar[str]
  finds_length: ClassVar[bool] = True
  split: Split
  examples: Size | None

  @property
  def needs_labels(self) -> bool:
    """See the class."""
    return True


@dataclasses.dataclass(frozen=True)
class CoefficientSearch(DataRule):
  """The sum whose coefficients, one a vector, score best together on validation.

  First the plain sum, the average and random coefficients, for half of the budget; then
  steps from the best ones, of one coefficient at a time and of all in proportion, which are
  halved when none helps.

  Attributes:
    budget: how many sums are tried, each on all tasks.
    low: the smallest coefficient; below 0 a task may be unlearned.
    high: the largest one.
    metric: what is compared, see SEARCH_METRIC of `tpv eval`.
    seed: of the random coefficients.
    split: where they are tried.
    examples: the first ones of each task that are used; None for all.
  """

  source: ClassVar[str] = "arXiv 2307.13269, LoraHub's idea; the search is ours"
  computed_by: ClassVar[str] = "tpv_jax.evaluation.merging.search:searched"

  budget: Size = 40
  low: float = 0.0
  high: float = 1.5
  metric: Annotated[str, OneOf(("exact_match", "label_accuracy", "own"))] = (
    "exact_match"
  )
  seed: Seed = 0
  split: Split = "validation"
  examples: Size | None = 100

  def __post_init__(self) -> None:
    """Raises `UserError` unless there is something between the bounds."""
    if self.low >= self.high:
      raise UserError(
        f"coefficient_search looks from low = {self.low:g} to high = {self.high:g}, "
        "between which there is nothing. Set high above low."
      )

  @property
  def linear(self) -> bool:
    """The result is a sum."""
    return True

  @property
  def needs_labels(self) -> bool:
    """Only where labels are compared; the search checks its metric itself."""
    return False


@dataclasses.dataclass(frozen=True)
class Fisher(DataRule):
  """The average in which each value counts by how much its task's answers depend on it.

  sum_i w_i F_i v_i / sum_i w_i F_i, where F_i is the diagonal of the Fisher information of
  task i at its tuned prompt: the mean over its examples of sum_y p(y) (d log p(y))^2, over
  its label words y. Each F_i is at least `fisher_floor`, and is divided by its norm.

  Attributes:
    fisher_floor: the least value of F_i.
    split: whose sources are read; its targets are not.
    examples: the first ones of each task that are used; None for all.
    batch_size: rows of a call, each a source with one label. Their gradients take several
      times the memory of scoring, hence fewer than in BATCH_SIZE.
  """

  source: ClassVar[str] = "arXiv 2111.09832, Fisher merging"
  weighted: ClassVar[bool] = True
  computed_by: ClassVar[str] = "tpv_jax.evaluation.merging.fisher:averaged"
  finds_length: ClassVar[bool] = False

  fisher_floor: Positive = 1e-6
  split: Split = "train"
  examples: Size | None = 256
  batch_size: Size = 16


@dataclasses.dataclass(frozen=True)
class AdaMerging(DataRule):
  """The sum with coefficients learned by gradient, one a vector, or one a vector and token.

  Adam lowers the mean over the tasks of the entropy of the label words' probabilities, or
  of the training loss, behind the initial prompt plus the sum.

  Attributes:
    per_token: one coefficient for each vector and token; the result is not linear then.
    objective: 'entropy', for which targets are not read; or 'loss'.
    steps: of Adam.
    learning_rate: Adam's.
    initial_coefficient: what all coefficients start from.
    batch_size: examples of each task in a step.
    seed: of the order of the examples.
    split: whose examples are read.
    examples: the first ones of each task that are used; None for all.
  """

  source: ClassVar[str] = "arXiv 2310.02575, task-wise; with per_token, ours"
  computed_by: ClassVar[str] = "tpv_jax.evaluation.merging.learned:learned"

  per_token: bool = False
  objective: Annotated[str, OneOf(("entropy", "loss"))] = "entropy"
  steps: Steps = 500
  learning_rate: Positive = 1e-3
  initial_coefficient: Fraction = 0.3
  batch_size: Size = 16
  seed: Seed = 0
  split: Split = "train"
  examples: Size | None = None

  @property
  def linear(self) -> bool:
    """Whether a vector has one coefficient."""
    return not self.per_token

  @property
  def needs_labels(self) -> bool:
    """The entropy is over label words."""
    return self.objective == "entropy"
