"""The checks of a T5X command's settings, the same as those of our own commands.

T5X has gin parse the files and lock its configuration. Just before it is locked,
`gin_files` parses them once more and records who made each setting, and where; then
`settings.refusals` refuses settings that nothing reads, that are missing or that have the
wrong type. So a mistake is reported in one line, before anything is built or written.
Nothing of T5X is imported.
"""

import atexit
import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gin
from absl import app, flags
from gin import config

from tpv_jax import t5x
from tpv_jax.core.checks import Lengths, Seed, Size, Steps, StepsOrNone
from tpv_jax.core.errors import UserError
from tpv_jax.devices import processes
from tpv_jax.runs import run_folder
from tpv_jax.settings import gin_files, refusals

COMMANDS = ("train", "evaluate", "infer")
"""The functions of T5X that gin configures, one in each of its commands."""

_DATA = {
  "batch_size": Size,
  "seed": Seed | None,
  "split": str,
  "shuffle": bool,
  "use_cached": bool,
  "task_feature_lengths": Lengths,
}
_OF_T5X: Mapping[str, Mapping[str, Any]] = {
  "__main__.train": {
    "model_dir": str,
    "total_steps": Steps,
    "eval_steps": Steps,
    "eval_period": StepsOrNone,
    "random_seed": Seed | None,
    "use_hardware_rng": bool,
    "use_orbax": Literal[True],
  },
  "__main__.evaluate": {"output_dir": str},
  "__main__.infer": {
    "mode": Literal["predict", "score", "predict_with_aux"],
    "output_dir": str,
    "checkpoint_period": Steps,
  },
  "t5x.utils.DatasetConfig": _DATA,
  "t5x.utils.SaveCheckpointConfig": {
    "period": Steps,
    "keep": Size | None,
    "dtype": Literal["float32"],  # T5X restores a run's own checkpoints in it.
  },
  "t5x.utils.RestoreCheckpointConfig": {"dtype": Literal["float32"]},
}
"""Annotations for T5X's parameters, as its own have no ranges."""

INSTEAD = {
  "MIXTURE_OR_TASK_NAME": "Add --gin_file=gin_configs/t5x/seqio_task.gin after t5x/train.gin"
  " and write SEQIO_TASK.",
  "MIXTURE_OR_TASK_MODULE": "Add --gin_file=gin_configs/t5x/seqio_task.gin after "
  "t5x/train.gin and write TASK_MODULES, a list.",
  "TASK_FEATURE_LENGTHS": "Write LENGTHS.",
  "INITIAL_CHECKPOINT_PATH": "Write BACKBONE.",
  "CHECKPOINT_PATH": "Write BACKBONE for the model, PROMPT_PATH for the prompt.",
  "EVAL_OUTPUT_DIR": "Write OUTPUT_DIR.",
  "INFER_OUTPUT_DIR": "Write OUTPUT_DIR.",
  "TRAIN_STEPS_RELATIVE": "Write TRAIN_STEPS, which counts a prompt's steps from 0.",
  "LOSS_NORMALIZING_FACTOR": "The loss is the mean over target tokens; for another scale "
  "change LEARNING_RATE.",
  "EVALUATOR_NUM_EXAMPLES": "Training validates on EVAL_STEPS batches; t5x.eval reads it.",
  "EVALUATOR_USE_MEMORY_CACHE": "Only t5x.eval reads it.",
  "JSON_WRITE_N_RESULTS": "Only t5x.eval reads it.",
  "PjitPartitioner.num_partitions": "Write MODEL_PARALLEL.",
  "PjitPartitioner.model_parallel_submesh": "Write MODEL_PARALLEL_SUBMESH.",
  "PjitPartitioner.logical_axis_rules": "Write AXIS_RULES, with the rules that differ from "
  "tpv_jax.devices.partitioning.LOGICAL_AXIS_RULES.",
  "standard_logical_axis_rules": "Write AXIS_RULES, with the rules that differ from "
  "tpv_jax.devices.partitioning.LOGICAL_AXIS_RULES.",
  "trainer.Trainer.num_microbatches": "Write MICROBATCHES.",
  "create_learning_rate_scheduler.base_learning_rate": "Write LEARNING_RATE.",
  "create_learning_rate_scheduler.warmup_steps": "Write WARMUP_STEPS.",
  "DatasetConfig.batch_size": "Write BATCH_SIZE.",
  "DatasetConfig.mixture_or_task_name": "Add --gin_file=gin_configs/t5x/seqio_task.gin and "
  "write SEQIO_TASK.",
  "DatasetConfig.use_cached": "Write USE_CACHED_TASKS.",
}
"""Advice for names of T5X's own gin files that have no meaning here."""

_BYPASSING = {
  (
    "t5x.utils.CheckpointConfig",
    "restore",
  ): "would have T5X start from a checkpoint whose "
  "initial prompt the run does not know. To start from a prompt, set INITIAL_PROMPT = "
  "@initial.from_file (a file, run or checkpoint); the model is BACKBONE.",
  (
    "t5x.utils.RestoreCheckpointConfig",
    "path",
  ): "would replace the prompt that was named. "
  "Write PROMPT_PATH, a file, run or checkpoint.",
}
"""Settings of T5X that would bypass the run's own record of its prompt, and why."""


def check(
  entry: Callable[..., Any],
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str] = (),
) -> list[str]:
  """Parses a command's settings into gin's configuration, and checks them.

  Args:
    entry: `train`, `evaluate` or `infer` of T5X.
    files: gin files in order; T5X's own count as shipped.
    bindings: 'NAME=VALUE', applied after the files.
    search_paths: more folders in which to look for files.

  Returns:
    Lines about settings that this command ignores.

  Raises:
    UserError: see `gin_files.parse` and `settings.refusals.check`. For a name of T5X's
      own files, the error says what to write instead.
  """
  try:
    found = gin_files.parse(files, bindings, search_paths, libraries=("t5x",))
  except UserError as error:
    known = (words for name, words in INSTEAD.items() if name in str(error))
    raise UserError(" ".join([str(error), *known])) from error
  _refuse_a_mixtures_name(found)
  _refuse_bypassing(found)
  lines = refusals.check(entry, found, others=_OF_T5X, instead=INSTEAD)
  refusals.forget_unread(entry, found)  # So that T5X does not write it to config.gin.
  return lines


def watch() -> None:
  """Makes this process, a command of T5X, check its settings before it runs."""
  # Before gin's own hooks, which would report missing settings with a traceback.
  config._FINALIZE_HOOKS.insert(0, _before_it_runs)
  app.install_exception_handler(_OwnReport())


class _OwnReport(app.ExceptionHandler):
  """Reports our parser's error instead, if gin's own fails on a file or a binding."""

  def wants(self, error: BaseException) -> bool:
    return not isinstance(error, UserError) and not gin.config_is_locked()

  def handle(self, error: BaseException) -> None:
    del error  # Gin's message; ours is clearer.
    try:
      _check_command()
    except UserError as same:
      sys.excepthook(UserError, same, None)


def _before_it_runs(known: Any) -> None:
  """Checks the command's settings, and locks its MODEL_DIR against other runs."""
  del known  # gin's configuration, which is about to be locked.
  command = _check_command()
  if command is not None:
    share_data_dir(flags.FLAGS.tfds_data_dir)
  if command == "train":
    model_dir = copy.deepcopy(gin.query_parameter("train.model_dir"))  # Made by gin.
    t5x.leaving.enter_context(run_folder.held(model_dir))
    atexit.register(t5x.leaving.close)


def share_data_dir(given: str | None) -> None:
  """Makes our tasks read the folder of T5X's flag `--tfds_data_dir`, if it is given."""
  if given:
    os.environ["TFDS_DATA_DIR"] = given


def _check_command() -> str | None:
  """Checks the settings of this process, and prints which of them it ignores.

  Returns:
    The one of `COMMANDS` that it runs, None for another command of T5X.
  """
  known = [name for name in COMMANDS if f"__main__.{name}" in config._REGISTRY]
  given = flags.FLAGS
  if not known or "gin_file" not in given:  # A script of somebody else's.
    return None
  lines = check(
    config._REGISTRY[f"__main__.{known[0]}"].wrapped,
    given.gin_file or (),
    given.gin_bindings,
    [path for path in config._LOCATION_PREFIXES if path],
  )
  if processes.is_writer():
    for line in lines:
      print(line, file=sys.stderr)
  return known[0]


def _refuse_bypassing(found: gin_files.Settings) -> None:
  """Raises `UserError` for a user's setting that is in `_BYPASSING`."""
  for (_, *what), setting in found.items():
    words = _BYPASSING.get((what[0], what[1]))
    ours = repr(setting.value) in ("None", "@restoring.checkpoint_of()")
    if words and not setting.shipped and not ours:
      raise UserError(f"{setting.name} ({setting.place}) {words}")


def _refuse_a_mixtures_name(found: gin_files.Settings) -> None:
  """Raises `UserError` if MIXTURE_OR_TASK_NAME is a name, which would not be checked."""
  setting = found.get(("MIXTURE_OR_TASK_NAME", *gin_files.MACRO))
  if setting is not None and isinstance(setting.value, str):
    raise UserError(
      f"MIXTURE_OR_TASK_NAME ({setting.place}) is {setting.value!r}: a name alone would "
      f"leave the vocabulary unchecked. {INSTEAD['MIXTURE_OR_TASK_NAME']}"
    )
