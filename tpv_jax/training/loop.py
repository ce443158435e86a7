"""One run of training: what it begins with, its steps, validations and checkpoints."""

import dataclasses
import functools
import math
import re
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import jax
import numpy as np

from tpv_jax.backbones import loading, quantization
from tpv_jax.core import identity, screen
from tpv_jax.core.checks import OneOf
from tpv_jax.core.errors import UserError
from tpv_jax.core.screen import Bar
from tpv_jax.data.batches import Features
from tpv_jax.devices import partitioning, processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs import curves, records, subject, summary
from tpv_jax.runs.run_folder import RunFolder, versions
from tpv_jax.runs.run_settings import Settings
from tpv_jax.runs.tracking import Tracker
from tpv_jax.training import initial, refactoring, sameness
from tpv_jax.training import steps as compiled
from tpv_jax.training.checkpoints import Best, Checkpoints
from tpv_jax.training.initial import Drawn, Initial
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.prompt_files import PromptFiles, prompt_leaves
from tpv_jax.training.signals import Stopped, told
from tpv_jax.training.task_data import TrainingData

HIGHER_IS_BETTER = {"loss": False, "accuracy": True, "exact_match": True}
"""The validation metrics that can choose the best prompt."""

Metric = Annotated[str, OneOf(tuple(HIGHER_IS_BETTER))]


if TYPE_CHECKING:
  from tpv_jax.runs.events import Events


@dataclasses.dataclass
class Run:
  """One run of training; the fields are the arguments of `train`.

  `begin` comes first, then `record`, `judge` and `save` during the steps, then `finish`:
  a run writes the same files whether it is alone (`execute`) or one of a bank.
  """

  model: SoftPromptModel
  data: TrainingData
  folder: RunFolder
  total_steps: int
  learning_rate: LearningRate
  backbone: loading.Backbone | None
  initial_prompt: Initial | None
  initial_seed: int
  seed: int
  eval_period: int
  log_period: int
  checkpoint_period: int
  best_metric: str | None
  microbatches: int
  model_parallel: int
  progress: bool
  defaults: Mapping[str, Any]  # Of `train`, for manifests that lack a setting.
  patience: int | None = None
  wandb_project: str | None = None

  def __post_init__(self) -> None:
    if not callable(getattr(self.model.optimizer_def, "update", None)):
      raise UserError(
        f"OPTIMIZER is {self.model.optimizer_def!r}, and training needs an optimizer: "
        "@optimizers.by_group(), as gin_configs/runs/tuning.gin has it, or "
        "@optimizers.adamw()."
      )
    self.mesh = partitioning.make_mesh(self.model_parallel)
    compiled.check_batch_size(self.data.batch_size, self.microbatches, self.mesh)
    self.steps = compiled.build(
      self.model, self.learning_rate, self.microbatches, self.mesh
    )
    self.initial = self._draw_prompt()
    self.trained = sorted(
      path
      for path in self.steps.param_shardings
      if re.fullmatch(self.model.trainable, path)
    )
    self._trace()
    self.prompts = PromptFiles(
      self.folder,
      self.initial,
      self.data.name,
      tunes_backbone=any(not path.startswith("prompt/") for path in self.trained),
      chat_digest=self.data.settings().get("chat"),
    )
    self.recompiled = 0

  def _trace(self) -> None:
    """Traces the model on the data, so that it refuses them before anything is written."""
    if self.initial is not None and self.backbone is not None:
      params = {**self.backbone.params, "prompt": dict(self.initial.leaves)}
      trainable, frozen = self.model.split(params)
      jax.eval_shape(self.steps.validate, trainable, frozen, self._sample())

  def _sample(self) -> Features:
    """Returns the first validation batch, or the first training batch without any."""
    for batch in self.data.validation_batches():
      return batch
    return self.data.batch_at(0)

  @functools.cached_property
  def settings(self) -> Settings:
    """What must be equal for a run to be continued."""
    return sameness.settings_of(self)

  @property
  def initial_digest(self) -> str | None:
    """The digest of the initial prompt, None if there is none."""
    return None if self.initial is None else self.initial.provenance.initial_digest

  def execute(
    self, stop_requested: Callable[[], int | None], config: Callable[[], str] | None
  ) -> dict[str, Any]:
    """Runs all remaining steps and returns the manifest."""
    frozen = self.place_frozen()
    started = time.time()
    self.rewind_to(self.newest_whole_checkpoint())
    state, best = self.begin(frozen, self.fresh_state(), config)
    try:
      if self.lacks_untuned(int(state.step)):
        self.note_untuned(self._validation(state, frozen))
      state, best = self._loop(state, frozen, best, stop_requested)
    finally:
      self.close()
    if processes.is_writer():  # Before the manifest says that the run has ended.
      path = self.folder.path / summary.CURVES
      curves.write(path, curves.one, self.manifest, self.folder.metrics())
    return self.finish("finished", state, best, seconds=time.time() - started)

  def newest_whole_checkpoint(self) -> int | None:
    """Returns the step of the newest whole checkpoint, None if there is no checkpoint.

    A checkpoint is whole if it can be read and metrics.jsonl has all lines up to its step.
    Says why a newer one is none; nothing is deleted.

    Raises:
      UserError: no checkpoint is whole, or one is of another run.
    """
    self.checkpoints.refuse_foreign()
    steps = self.checkpoints.steps()
    why = None
    for step in reversed(steps):
      problem = self.checkpoints.damage(step) or self.folder.lost_metrics(
        self._expected_metrics(step)
      )
      if problem is None:
        if why is not None and processes.is_writer():
          screen.say(f"{self.folder.path}: {why}; continuing from step {step}")
        return step
      why = why or problem
    if why is not None:
      raise UserError(
        f"The run in '{self.folder.path}' cannot be continued: {why}. Bring the folder "
        "back from a copy, or remove it to start again."
      )
    return None

  def rewind_to(self, step: int | None) -> None:
    """Deletes the checkpoints of later steps, of which none is whole."""
    processes.wait_for_all("the checkpoints are read")
    if step is not None:
      self.checkpoints.drop_after(step)

  def _expected_metrics(self, step: int) -> list[tuple[int, str]]:
    """Returns the (step, kind) of the lines of metrics up to a step."""
    validates = any(True for _ in self.data.validation_batches())
    ends = [stop for _, stop in chunks(0, self.total_steps, self._periods)]
    return [
      (stop, kind)
      for stop in ends
      if stop <= step
      for kind in ("train", "validation")
      if kind == "train" or (validates and self._validates_at(stop))
    ]

  @property
  def _periods(self) -> tuple[int, int, int]:
    return self.log_period, self.eval_period, self.checkpoint_period

  def _validates_at(self, step: int) -> bool:
    return step % self.eval_period == 0 or step == self.total_steps

  def begin(
    self,
    frozen: compiled.Leaves,
    state: compiled.TrainState,
    config: Callable[[], str] | None,
  ) -> tuple[compiled.TrainState, Best | None]:
    """Returns the newest saved state, or `state` if there is none, and the best so far.

    Writes the manifest; before the first step, also the initial prompt and a checkpoint.
    """
    best: Best | None = None
    resumed = self.checkpoints.latest_step()
    previous = self.folder.manifest()
    if resumed is not None:
      state, best = self.checkpoints.restore(state)
      self.prompts.check_beside(state, best, self.checkpoints.refuse_unless_stated)
    self.folder.keep_metrics_until(resumed or 0)
    self.manifest: dict[str, Any] = {
      "format": records.FORMAT,
      "status": "running",
      "run": self.run_id,
      **self.settings.saved(),
      "task": self.data.name,
      "steps": self.total_steps,
      "seed": self.seed,
      "initial_seed": self.initial_seed,
      "initial_digest": self.initial_digest,
      "backbone": self.backbone and self.backbone.stated(self.model.network),
      "embeddings": self._scale(),
      "data": self.data.describe(),
      "majority": records.majority(self.data.describe()),
      "versions": versions(),
      "devices": [str(device.device_kind) for device in self.mesh.devices.flat],
      "mesh": dict(self.mesh.shape),
    }
    if resumed:
      self.manifest["seconds_from_step"] = resumed
    if self.backbone is not None:
      self.manifest[subject.KEY] = subject.of_run(
        self.folder.path, self.model, self.backbone, self.data
      )
    for name in ("bank", "wandb", records.UNTUNED):
      if name in previous:
        self.manifest[name] = previous[name]
    if self.initial is not None and self.initial.refactored is not None:
      self.manifest["refactored"] = previous.get("refactored") or refactoring.lost(
        self.model,
        self.model.merge(state.trainable, frozen),
        self.initial,
        self._sample(),
        self.mesh,
      )
    self.folder.write_manifest(self.manifest)
    if config is not None:
      self.folder.write_text("config.gin", config())
    if self.initial is not None and not self.prompts.has_initial():
      self.prompts.write("initial", self.initial.leaves, steps=0)
    if resumed is None:
      self.save(state, best)
    events = self.folder.events(first_step=(resumed or 0) + 1)
    self.logs: list[Events | Tracker] = [*self._trackers(), *events]
    return state, best

  def lacks_untuned(self, step: int) -> bool:
    """Returns whether the initial prompt must be validated before the steps go on.

    It is validated before the first step only: a run that an earlier version began goes on
    without.
    """
    untuned = self.initial is not None and records.UNTUNED not in self.manifest
    return untuned and step == 0 and any(True for _ in self.data.validation_batches())

  @property
  def untuned_key(self) -> tuple[Any, ...]:
    """Equal for runs whose initial prompts have the same validation metrics."""
    rows = self.data.settings().get("validation_tokens")
    return self.initial_digest, id(self.data) if rows is None else rows

  def note_untuned(self, values: Mapping[str, float]) -> None:
    """Writes the validation metrics of the initial prompt to the manifest."""
    self.manifest[records.UNTUNED] = records.finite(values)
    self.folder.write_manifest(self.manifest)

  def _scale(self) -> dict[str, float] | None:
    """Returns the size of the embedded tokens beside which the prompt stands."""
    if self.initial is None or self.backbone is None:
      return None
    return records.scale(self.backbone.table, self.model.network.embedding_scale)

  def _trackers(self) -> list[Tracker]:
    """Begins or continues a run of Weights & Biases, whose id the manifest states."""
    if self.wandb_project is None:
      return []
    known = self.manifest.get("wandb", {})
    id_ = known.get("id") if known.get("project") == self.wandb_project else None
    name = self.folder.path.name
    tracker = Tracker(self.wandb_project, name, self.folder.path, id_)
    tracker.describe(self.settings.values)
    self.manifest["wandb"] = {"project": self.wandb_project, "id": tracker.id}
    self.folder.write_manifest(self.manifest)
    return [tracker]

  def _event(self, step: int, kind: str, values: dict[str, float]) -> None:
    for log in self.logs:
      log.write(step, kind, values)

  @functools.cached_property
  def run_id(self) -> str:
    """The run that its checkpoints state: the digest of its settings when it began."""
    return self.folder.manifest().get("run") or self.settings.digest()

  @functools.cached_property
  def checkpoints(self) -> Checkpoints:
    """The run's checkpoints; Orbax makes their folder."""
    return Checkpoints(self.folder.path / "checkpoints", self.run_id)

  def close(self) -> None:
    """Ends the threads and files that the run has opened."""
    for log in self.logs:
      log.close()
    self.checkpoints.close()

  def _draw_prompt(self) -> Drawn | None:
    """Returns the initial prompt, None if the model has no prompt."""
    if self.model.prompt is None:
      return None
    if self.initial_prompt is None:
      raise UserError(
        "The model has a soft prompt and the run no initial prompt. Include a file of "
        "gin_configs/prompts/, or bind training.train.initial_prompt."
      )
    if self.backbone is None:
      raise UserError(
        "Training a soft prompt needs a backbone. Include a file of "
        "gin_configs/backbones/, or bind training.train.backbone."
      )
    return initial.draw(
      self.model.prompt,
      self.initial_prompt,
      np.asarray(self.backbone.table, np.float32),
      self.initial_seed,
      self.backbone.name,
      self.backbone.fingerprint,
      self.model.network,
    )

  def place_frozen(self) -> compiled.Leaves:
    """Returns the frozen leaves, on the devices, as the network stores them."""
    _, frozen = self.model.split(self._start)
    network = self.model.network
    return {
      path: self._put(path, quantization.stored(network, path, leaf))
      for path, leaf in frozen.items()
    }

  def fresh_state(self) -> compiled.TrainState:
    """Returns the state before the first step, on the devices."""
    trainable, _ = self.model.split(self._start)
    return self.steps.initialise(
      {path: self._put(path, leaf) for path, leaf in trainable.items()}
    )

  @functools.cached_property
  def _start(self) -> dict[str, Any]:
    """All parameters before the first step, on this host."""
    if self.backbone is None:
      rng = jax.random.key(self.seed)
      params = jax.device_get(self.model.get_initial_variables(rng, {})["params"])
    else:
      params = dict(self.backbone.params)
    if self.initial is not None:
      params["prompt"] = dict(self.initial.leaves)
    return params

  def _put(self, path: str, leaf: Any) -> Any:
    return processes.put_leaf(leaf, self.steps.param_shardings[path])

  def _loop(
    self,
    state: compiled.TrainState,
    frozen: compiled.Leaves,
    best: Best | None,
    stop_requested: Callable[[], int | None],
  ) -> tuple[compiled.TrainState, Best | None]:
    rng = jax.random.key(self.seed)
    first = int(state.step)
    parts = chunks(first, self.total_steps, self._periods)

    def batches(start: int, stop: int) -> dict[str, jax.Array]:
      steps = range(start, stop)
      return compiled.put_batches(self.steps, [self.data.batch_at(i) for i in steps])

    bar = Bar(
      total=self.total_steps,
      initial=first,
      desc=self.data.name,
      unit="step",
      disable=not (self.progress and processes.is_writer()),
      dynamic_ncols=True,
    )
    upcoming = batches(*parts[0]) if parts else None
    lengths: set[int] = set()  # Steps per call so far; each length is a program.
    with bar, compiled.compilations() as compilations:
      for index, (start, stop) in enumerate(parts):
        began, before = time.time(), compilations()
        state, report = self.steps.train(state, frozen, upcoming, rng)
        if stop - start in lengths:
          self.recompiled += compilations() - before
        lengths.add(stop - start)
        # The next batches are prepared while the devices work on these.
        if index + 1 < len(parts):
          upcoming = batches(*parts[index + 1])
        report = jax.device_get(report)
        speed = (stop - start) * self.data.batch_size / (time.time() - began)
        train_metrics = self.record(start, stop, report, speed)
        bar.update(stop - start)
        postfix = {"loss": f"{train_metrics['loss']:.3f}", "examples/s": f"{speed:.0f}"}
        if self._validates_at(stop):
          best, validation = self.validate(state, frozen, best)
          postfix |= {f"val_{k}": f"{v:.3f}" for k, v in validation.items()}
        bar.set_postfix(postfix)
        number = processes.agreed(stop_requested())
        if stop % self.checkpoint_period == 0 or stop == self.total_steps or number:
          self.save(state, best)
        if number and stop < self.total_steps:
          self.finish("stopped", state, best)
          raise Stopped(number, told(number, f"after step {stop}"))
    return state, best

  def record(
    self, start: int, stop: int, report: dict[str, np.ndarray], examples_per_s: float
  ) -> dict[str, float]:
    """Writes and returns the mean metrics of steps `start` to `stop`.

    Raises:
      UserError: a loss, gradient or parameter was not finite.
    """
    self.folder.stands()
    metrics = self._check_finite(report, start)
    self.folder.append_metrics(stop, "train", metrics)
    self._event(stop, "train", metrics | {"examples_per_s": examples_per_s})
    return metrics

  def save(self, state: compiled.TrainState, best: Best | None) -> None:
    """Writes a checkpoint, and its prompt as the last one."""
    self.checkpoints.save(state, best)
    if self.model.prompt is not None:
      self.prompts.write("last", prompt_leaves(state.trainable), int(state.step))

  def _check_finite(
    self, report: dict[str, np.ndarray], start: int
  ) -> dict[str, float]:
    """Returns the means over the call's steps; stops the run if a loss is not finite."""
    finite = np.isfinite(report["loss"]) & np.isfinite(report["gradient_norm"])
    finite &= report.pop("finite_parameters")
    if not finite.all():
      step = start + int(np.argmin(finite)) + 1
      why = f"Loss, gradient or prompt became NaN or infinite at step {step}."
      self.manifest |= {"status": "failed", "why": why}
      self.folder.write_manifest(self.manifest)
      raise UserError(
        f"{why} The last good "
        f"state is checkpoint {self.checkpoints.latest_step()} in '{self.folder.path}'. "
        "Lower the learning rate or clip gradients, and start in another folder; 'tpv "
        f"diagnose {shlex.quote(str(self.folder.path))}' tells more."
      )
    return {
      name: float(np.mean(values, dtype=np.float64)) for name, values in report.items()
    }

  def validate(
    self, state: compiled.TrainState, frozen: compiled.Leaves, best: Best | None
  ) -> tuple[Best | None, dict[str, float]]:
    """Returns the best so far and the validation metrics, and writes both."""
    means = self._validation(state, frozen)
    return self.judge(state, best, means), means

  def _validation(
    self, state: compiled.TrainState, frozen: compiled.Leaves
  ) -> dict[str, float]:
    """Returns the validation metrics, {} without validation examples."""
    sums = None
    for batch in self.data.validation_batches():
      placed = processes.put_all(batch, self.steps.batch_sharding)
      new = self.steps.validate(state.trainable, frozen, placed)
      sums = new if sums is None else {k: sums[k].merge(new[k]) for k in new}
    return {name: float(metric.compute()) for name, metric in (sums or {}).items()}

  def judge(
    self, state: compiled.TrainState, best: Best | None, values: dict[str, float]
  ) -> Best | None:
    """Returns the best so far after a validation, whose metrics (`values`) it writes."""
    if not values:
      return best
    step = int(state.step)
    self.folder.append_metrics(step, "validation", values)
    self._event(step, "validation", values)
    if self.best_metric is None:
      return None
    value = values[self.best_metric]
    sign = 1.0 if HIGHER_IS_BETTER[self.best_metric] else -1.0
    if math.isfinite(value) and (best is None or sign * value > sign * best.metric):
      best = Best(step, value, processes.on_host(state.trainable))
      if self.model.prompt is not None:
        self.prompts.write("best", prompt_leaves(best.trainable), step)
    return best

  def finish(
    self,
    status: str,
    state: compiled.TrainState,
    best: Best | None,
    seconds: float | None = None,
  ) -> dict[str, Any]:
    """Writes the last and best prompts and the manifest, which it returns."""
    self.manifest |= {"status": status, "last_step": int(state.step)}
    if self.model.prompt is not None:
      last = prompt_leaves(state.trainable)
      self.prompts.write("last", last, int(state.step))
      self.manifest["last_digest"] = identity.prompt_digest(last)
      if best is not None:
        leaves = prompt_leaves(best.trainable)
        self.prompts.write("best", leaves, best.step)
        self.manifest["best_digest"] = identity.prompt_digest(leaves)
    if best is not None:
      self.manifest |= {
        "best_step": best.step,
        "best_metric": {self.best_metric: best.metric},
      }
    if seconds is not None:
      self.manifest["seconds_since_start"] = round(seconds, 3)
    if self.recompiled:
      screen.say(f"Steps were compiled again {self.recompiled} times.")
      self.manifest["recompiled"] = self.recompiled
    self.folder.write_manifest(self.manifest)
    return self.manifest


def chunks(first: int, total: int, periods: tuple[int, ...]) -> list[tuple[int, int]]:
  """Returns [start, stop) step ranges that end at each multiple of a period.

  The ends depend on the step alone, so a resumed run makes the same compiled calls.
  """
  ends = sorted(
    {
      min(end, total)
      for period in periods
      for end in range(first - first % period + period, total + period, period)
    }
  )
  return list(zip([first, *ends[:-1]], ends, strict=True)) if first < total else []
