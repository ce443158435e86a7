"""One training run, which can be resumed at any moment."""

from collections.abc import Callable
from typing import Any

from tpv_jax.backbones import loading
from tpv_jax.core import files, screen
from tpv_jax.core.checks import Seed, Size, Steps, checked
from tpv_jax.devices import processes
from tpv_jax.model import SoftPromptModel
from tpv_jax.runs import summary
from tpv_jax.runs.diagnosis import evidence, registry
from tpv_jax.runs.run_folder import RunFolder, alone
from tpv_jax.runs.run_settings import defaults_of
from tpv_jax.training import lengthening
from tpv_jax.training.initial import Initial
from tpv_jax.training.loop import Metric, Run
from tpv_jax.training.optimizers import LearningRate
from tpv_jax.training.signals import stop_signals
from tpv_jax.training.task_data import TrainingData


@checked
@processes.one_clear_line_if_memory_is_short(
  "Lower BATCH_SIZE, give MICROBATCHES (parts of a batch, one after the other), shorten "
  "LENGTHS, set DTYPE = 'bfloat16', or cut the backbone over devices (MODEL_PARALLEL)."
)
def train(
  model: SoftPromptModel,
  data: TrainingData,
  run_dir: files.PathLike,
  total_steps: Steps,
  learning_rate: LearningRate,
  backbone: str | loading.Backbone | None = None,
  initial_prompt: Initial | None = None,
  initial_seed: Seed = 0,
  seed: Seed = 0,
  eval_period: Steps = 100,
  log_period: Steps = 25,
  checkpoint_period: Steps | None = None,
  best_metric: Metric | None = "loss",
  microbatches: Size = 1,
  model_parallel: Size = 1,
  overwrite: bool = False,
  wandb_project: str | None = None,
  progress: bool = True,
  config: Callable[[], str] | None = None,
) -> dict[str, Any]:
  """Trains what `model.trainable` names and returns the run's manifest.

  The same call continues a run that was stopped or killed, from its newest checkpoint,
  and ends with the same bits as an unbroken run on the same CPU machine (on an
  accelerator: with XLA's deterministic flags). A finished run is left as it is; with more
  `total_steps` it goes on, if its schedule allows that (see `lengthening`).

  Args:
    model: owns the loss, the optimizer and the pattern of what is trained.
    data: gives training batches by step, and validation batches.
    run_dir: the run's folder; see `run_folder`.
    total_steps: optimizer steps in all.
    learning_rate: a schedule: step, counted from 0, to learning rate.
    backbone: what `load_backbone` takes, or its result; None draws random parameters by
      `seed` (pre-training).
    initial_prompt: a function of `training.initial`; required if the model has a prompt.
    initial_seed: the seed of the initial prompt.
    seed: of dropout and of random parameters.
    eval_period: steps between validations.
    log_period: steps between log lines; at most this many run in one compiled call.
    checkpoint_period: steps between checkpoints, by default `eval_period`.
    best_metric: the validation metric that chooses the best prompt, from
      `HIGHER_IS_BETTER`; None keeps no best prompt.
    microbatches: parts into which a batch is split; their gradients are weighted by
      target tokens.
    model_parallel: devices over which each parameter is split.
    overwrite: delete a run that is in `run_dir` and start again.
    wandb_project: of Weights & Biases, where metrics go as well; see `runs.tracking`.
    progress: show a progress bar.
    config: returns the text of config.gin; called once the run has started.

  Raises:
    UserError: settings that do not fit each other or the run in `run_dir`; NaN or
      infinity in the loss (the last good state is kept).
    Stopped: SIGINT or SIGTERM came; the state is saved.
  """
  if backbone is not None:
    backbone = loading.loaded(backbone, model.network, model.input_vocabulary)
  run = Run(
    model=model,
    data=data,
    folder=RunFolder(run_dir),
    total_steps=total_steps,
    learning_rate=learning_rate,
    backbone=backbone,
    initial_prompt=initial_prompt,
    initial_seed=initial_seed,
    seed=seed,
    eval_period=eval_period,
    log_period=log_period,
    checkpoint_period=checkpoint_period or eval_period,
    best_metric=best_metric,
    microbatches=microbatches,
    model_parallel=model_parallel,
    progress=progress,
    wandb_project=wandb_project,
    defaults=defaults_of(train),
  )
  with alone(run.folder):
    before = None if overwrite else lengthening.lengthened(run)
    processes.wait_for_all("the run's end is checked")
    if before is not None:
      screen.say(f"{run.folder.path} was to end after {before} steps, and goes on.")
      lengthening.lengthen(run)
      processes.wait_for_all("the run's new end is stated")
    manifest = run.folder.open(run.settings, overwrite)
    if manifest.get("status") == "finished":
      screen.say(f"{run.folder.path} is finished; nothing to do.")
      return manifest
    for line in [*data.losses(), *run.steps.kept_whole]:
      screen.say(line)
    with stop_signals() as stop_requested, processes.one_clear_line_if_one_is_lost():
      manifest = run.execute(stop_requested, config)
    if progress and processes.is_writer():
      seen = evidence.read(run.folder.path)
      lines = summary.ended(run.folder.path, manifest, seen.lines)
      lines += registry.hints({run.folder.path: registry.findings(seen)})
      screen.say("\n".join(lines))
    return manifest
