"""`tpv plan` of a study: what its gin files would have it do, and how long that takes."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tpv_jax.cli import gin_verb
from tpv_jax.core.errors import UserError, printable
from tpv_jax.core.tables import aligned

if TYPE_CHECKING:
  from tpv_jax.studies.base import Study
  from tpv_jax.studies.cost import Tokens
  from tpv_jax.training.estimate import Chip


def run(options: argparse.Namespace) -> None:
  """Prints the cost of the study."""
  from tpv_jax.banks import memory
  from tpv_jax.studies import cost
  from tpv_jax.training import estimate

  study: Any = _study(options)
  if study is None:
    return
  jobs = cost.jobs_of(study)
  settings = study.settings
  tokens = {
    task.name: cost.tokens_of(task, settings.vocabulary, settings.lengths)
    for task in study.tasks
  }
  speed = _speed(options.like, study, tokens) if options.like else None
  done = cost.cost_of(jobs, study.model, tokens)
  seeds = len(settings.initial_seeds)
  scored = {name: sum(rows.values()) for name, rows in jobs.scoring.items()}
  by_kind = ", ".join(f"{name} {rows:,}" for name, rows in scored.items())
  print(
    f"{study.work}: {len(study.tasks)} tasks x {seeds} initial prompts on "
    f"{printable(str(settings.backbone))}, {study.model.network.dtype}"
  )
  rows = [
    (
      "tuning",
      f"{jobs.runs:,} prompts, {jobs.steps:,} steps, {done.trained / 1e6:,.3g} million "
      "tokens",
    ),
    ("scoring", f"{sum(scored.values()):,} rows: {by_kind}"),
    (
      "operations",
      f"{done.flops / 1e15:,.4g} PFLOP: tuning {done.tuning / done.flops:.0%}, "
      f"validation {done.validating / done.flops:.0%}, scoring "
      f"{done.scoring / done.flops:.0%}",
    ),
    (
      "memory",
      f"{memory.text(done.backbone)} backbone; at most {memory.text(done.kept)} that a "
      "step of one prompt keeps",
    ),
  ]
  for name in options.chip or estimate.CHIPS:
    chip = estimate.CHIPS[name]
    rows.append((f"one {name}", f"at least {_hours(done.hours(chip))}, {_basis(chip)}"))
  if speed is not None:
    seconds, flops, what = speed
    rows.append(
      (f"like {options.like}", f"{_hours(done.flops / flops * seconds / 3600)}, {what}")
    )
  print(aligned(rows, left=2))
  print(
    "Chips: without decoding, padding, compilation, and what small steps leave idle. Like a "
    "run: with its padding and compilation."
    if options.like
    else "Without decoding, padding, compilation, and what small steps leave idle. --like RUN "
    "takes the speed of a run that has finished."
  )


def _hours(hours: float) -> str:
  if hours < 1 / 60:
    return f"{3600 * hours:.2g} s"
  if hours < 1:
    return f"{60 * hours:.2g} minutes"
  return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def _basis(chip: "Chip") -> str:
  from tpv_jax.training import estimate

  peak = f"{chip.flops / 1e12:g} TFLOP/s or {chip.bandwidth / 1e12:g} TB/s"
  return f"at {estimate.UTILISATION:.0%} of {peak}, assumed and not measured"


def _study(options: argparse.Namespace) -> "Study | None":
  """Returns the study that the gin files set up, checked; None with --show-config."""
  from tpv_jax.settings import gin_files
  from tpv_jax.studies import base, registry

  search_paths = gin_verb.search_paths(options)
  bound = gin_files.bound(options.gin_file, options.gin_bindings, search_paths)
  functions = {}
  for name in registry.STUDIES:
    function = registry.study(name).run
    entry = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    if any(one.startswith(f"{entry}.") for one in bound):
      functions[name] = function
  if len(functions) != 1:
    raise UserError(
      f"The gin files set {' and '.join(functions) or 'no study'}; give those of one study, "
      "such as --gin_file=gin_configs/studies/full.gin."
    )
  with base.set_up() as found:
    gin_verb.run(next(iter(functions.values())), options)
  return found[0] if found else None


def _speed(
  run: str, study: Any, known: Mapping[str, "Tokens"]
) -> tuple[float, int, str]:
  """Returns the seconds and operations of a finished run, and what it is.

  Args:
    run: its folder.
    study: has the network, which must be the run's.
    known: the tokens of the study's tasks; another task's answers count as one token.

  Raises:
    UserError: it has not finished, shared its time with others, or is of another network.
  """
  from tpv_jax.core import files
  from tpv_jax.studies import cost

  manifest: Mapping[str, Any] = files.read_json(
    files.to_path(run) / "manifest.json", most_bytes=1 << 26
  )
  why = None
  if manifest.get("status") != "finished":
    why = "has not finished"
  elif "bank" in manifest:
    why = "was tuned in a bank, beside others"
  elif not manifest.get("settings", {}).get("prompt"):
    why = "tuned no prompt"
  elif first := manifest.get("seconds_from_step"):
    why = f"was continued after step {first}, and its time is that of the rest"
  if why:
    raise UserError(
      f"The run '{run}' {why}, so its time says little. Give another one."
    )
  if "counts" not in manifest.get("data", {}) or "network" not in manifest["settings"]:
    raise UserError(
      f"The run '{run}' does not state its tokens and its network: an older tpv_jax wrote "
      "it. Give one of this release."
    )
  settings, data = manifest["settings"], manifest["data"]
  for name, value in settings["network"].items():
    mine = getattr(study.model.network, name, None)
    if mine != (tuple(value) if isinstance(value, list) else value):
      raise UserError(
        f"The run '{run}' has {name} {value}, and the study {mine}: its speed is another "
        "one's. Give a run on the study's backbone."
      )
  its_rank, rank = (
    settings["prompt"].get("rank"),
    getattr(study.model.prompt, "rank", 0),
  )
  if bool(its_rank) != bool(rank):
    kinds = {False: "plain", True: "DePT or EPT"}
    raise UserError(
      f"The run '{run}' tuned a {kinds[bool(its_rank)]} prompt, and the study tunes "
      f"{kinds[bool(rank)]} ones: its speed is another one's."
    )
  task, steps = manifest["task"], manifest["last_step"]
  counts = data["counts"]["train"]
  tuned = cost.Tuning(
    *([task], steps, data["batch_size"]),
    cost.validations(steps, settings["eval_period"]),
    {task: data["counts"]["validation"]["examples"]},
    settings["prompt"]["length"],
  )
  answer = known[task].target if task in known else 1.0
  tokens = cost.Tokens(counts["tokens"] / counts["examples"] - answer, answer, 0)
  done = cost.cost_of(cost.Jobs([tuned], {}), study.model, {task: tokens})
  seconds = float(manifest["seconds_since_start"])
  devices = " and ".join(dict.fromkeys(manifest["devices"]))
  what = f"whose {steps} steps and validations took {seconds:.0f} s on {devices}"
  return seconds, done.flops, what
