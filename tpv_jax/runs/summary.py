"""What a run has reached, in words and as JSON, from its manifest and metrics; no JAX."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tpv_jax.core import files
from tpv_jax.core.errors import printable
from tpv_jax.core.tables import aligned
from tpv_jax.io import orbax
from tpv_jax.runs import records

CURVES = "curves.png"
"""The picture that a run draws of its metrics when it ends; see `curves`."""

_METRICS = {
  "loss": "loss",
  "exact_match": "exact match",
  "accuracy": "tokens right",
}
"""The validation metrics, and their names in a table."""

_IN_PERCENT = ("exact_match", "accuracy")

Lines = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics.jsonl."""


def ended(path: files.Path, manifest: Mapping[str, Any], lines: Lines) -> list[str]:
  """Returns what is shown when a run has ended: what it reached, its files, what is next.

  Args:
    path: of the run's folder.
    manifest: of the run.
    lines: of its metrics.
  """
  task = printable(str(manifest.get("task")))
  found = [
    f"Trained '{task}' for {manifest.get('last_step')} steps; the run is in '{path}'.",
    *reached(manifest, lines),
  ]
  prompt = _prompt(path)
  if prompt is not None:
    found.append(f"  prompt: {prompt}")
  if (path / CURVES).is_file():
    found.append(f"  curves: {path / CURVES}")
  commands = next_commands(path, manifest)
  return [*found, "Next:", *(f"  {line}" for line in commands)] if commands else found


def ended_together(
  runs: Mapping[files.Path, tuple[Mapping[str, Any], Lines]],
  picture: files.Path | None,
) -> list[str]:
  """Returns what is shown when a bank has ended: a row for each prompt, what is next.

  Args:
    runs: folder -> the run's manifest and the lines of its metrics.
    picture: of the curves of all prompts, if it was drawn.
  """
  header = ["run", "status", "best step", "loss", "exact match", "untuned", "majority"]
  table = [header]
  for path, (manifest, lines) in runs.items():
    by_title = list(scores(manifest, lines).items())
    best: Mapping[str, Any] = by_title[0][1] if "best_step" in manifest else {}
    untuned = manifest.get(records.UNTUNED) or {}
    majority = manifest.get("majority") or {}
    table.append(
      [
        str(path),
        str(manifest["status"]),
        str(manifest.get("best_step", "-")),
        _shown("loss", best.get("loss")),
        _shown("exact_match", best.get("exact_match")),
        _shown("exact_match", untuned.get("exact_match")),
        _shown("exact_match", majority.get("share")),
      ]
    )
  found = [f"Trained {len(runs)} prompts; their runs, by their best validation:"]
  found += [f"  {line}" for line in aligned(table, left=2).split("\n")]
  if picture is not None:
    found.append(f"  curves: {picture}")
  finished = [path for path, (one, _) in runs.items() if one["status"] == "finished"]
  commands = next_commands(finished[0], runs[finished[0]][0]) if finished else []
  return [
    *found,
    *(["Next, for the first:"] if commands else []),
    *(f"  {c}" for c in commands),
  ]


def reached(manifest: Mapping[str, Any], lines: Lines) -> list[str]:
  """Returns a table of validation metrics: best, last, untuned, majority; [] without any."""
  rows = scores(manifest, lines)
  if not rows:
    return []
  names = [name for name in _METRICS if any(name in row for row in rows.values())]
  table = [
    ["validation", *(_METRICS[name] for name in names)],
    *(
      [title, *(_shown(name, row.get(name)) for name in names)]
      for title, row in rows.items()
    ),
  ]
  return [f"  {line}" for line in aligned(table).split("\n")]


def rows(path: files.Path, manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Returns labels and values: the run, its task, its state and its settings."""
  return [
    ("run", path),
    ("task", manifest.get("task")),
    ("state", state(path, manifest)),
    *settings(manifest).items(),
  ]


def scores(
  manifest: Mapping[str, Any], lines: Lines
) -> dict[str, dict[str, float | None]]:
  """Returns title -> validation metrics: of the best and last step, untuned, majority."""
  by_step = {
    line["step"]: {name: line[name] for name in _METRICS if name in line}
    for line in lines
    if line["kind"] == "validation"
  }
  found: dict[str, dict[str, float | None]] = {}
  best = manifest.get("best_step")
  if best is None and by_step and manifest.get("settings", {}).get("best_metric"):
    best = best_so_far(manifest, lines)
  if best in by_step:
    found[f"best, step {best}"] = by_step[best]
  if by_step and max(by_step) != best:
    found[f"last, step {max(by_step)}"] = by_step[max(by_step)]
  if manifest.get(records.UNTUNED):
    found["untuned"] = dict(manifest[records.UNTUNED])
  if manifest.get("majority"):
    majority = manifest["majority"]
    title = f"always '{printable(majority['label']):.40}'"
    found[title] = {"exact_match": majority["share"]}
  return found


def best_so_far(manifest: Mapping[str, Any], lines: Lines) -> int | None:
  """Returns the step of the best validation of a run that has not ended."""
  metric = manifest["settings"]["best_metric"]
  sign = 1 if metric in _IN_PERCENT else -1
  found = [
    (sign * line[metric], -line["step"])
    for line in lines
    if line["kind"] == "validation" and line.get(metric) is not None
  ]
  return -max(found)[1] if found else None


def next_commands(path: files.Path, manifest: Mapping[str, Any]) -> list[str]:
  """Returns commands to go on with, as they can be run; none without a prompt."""
  prompt = _prompt(path)
  if prompt is None:
    return []
  run = shlex.quote(str(path))
  which = "" if prompt.name.startswith("best") else " --which last"
  vector = shlex.quote(f"{path.name}.safetensors")
  commands = {
    f"tpv show {run}": "this again, with settings",
    f"tpv diff {run}{which} -o {vector}": "its vector",
  }
  if (manifest.get("subject") or {}).get("recipe"):
    commands[f"tpv infer --prompt {run}{which}"] = "answers what you type or pipe to it"
  width = max(map(len, commands))
  return [f"{command:<{width}}  # {what}" for command, what in commands.items()]


def state(path: files.Path, manifest: Mapping[str, Any]) -> str:
  """Returns the status of a run and how an unfinished one is continued."""
  status = manifest.get("status")
  steps = manifest.get("settings", {}).get("total_steps", manifest.get("steps"))
  if status == "finished":
    return f"finished after step {manifest.get('last_step')}"
  saved = saved_step(path)
  at = "no checkpoint yet" if saved is None else f"checkpoint of step {saved}"
  if status == "failed":
    why = manifest.get("why", "loss, gradient or prompt became NaN or infinite")
    return f"failed ({at} of {steps} steps): {printable(str(why))}"
  word = "stopped" if status == "stopped" else "running, or was killed"
  return (
    f"{word} ({at} of {steps}); the command that began it, given again, continues it"
  )


def saved_step(path: files.Path) -> int | None:
  """Returns the step of the newest checkpoint."""
  folder = path / "checkpoints"
  found = folder.iterdir() if folder.is_dir() else ()
  steps = [orbax.checkpoint_step(one) for one in found]
  return max((step for step in steps if step is not None), default=None)


def settings(manifest: Mapping[str, Any]) -> dict[str, str]:
  """Returns the settings of a run that people look for, by name, as text."""
  known = manifest.get("settings", {})
  data, network = known.get("data", {}), known.get("network") or {}
  backbone = manifest.get("backbone") or {}
  parts = (backbone.get("name"), network.get("dtype"), backbone.get("quantize"))
  found = {
    "backbone": ", ".join(str(part) for part in parts if part),
    "prompt": _listed(known.get("prompt") or {}),
    "steps": str(known.get("total_steps", "")),
    "rows a step": str(data.get("batch_size", "")),
    "learning rate": _rates(
      [float(rate) for rate in known.get("learning_rate") or []],
      known.get("total_steps"),
    ),
    "validation": _listed(
      {
        "every steps": known.get("eval_period"),
        "rows": data.get("validation_examples"),
        "best by": known.get("best_metric"),
      }
    ),
    "lengths": _listed(data.get("lengths", {})),
    "seeds": _listed(
      {"initial prompt": known.get("initial_seed"), "rows": data.get("seed")}
    ),
    "devices": ", ".join(sorted(set(manifest.get("devices", [])))),
    "seconds": _seconds(manifest),
  }
  return {name: value for name, value in found.items() if value}


def _seconds(manifest: Mapping[str, Any]) -> str:
  """Returns how long a run took, and from which step on if it was continued."""
  text = str(manifest.get("seconds_since_start", ""))
  first = manifest.get("seconds_from_step")
  return f"{text} (from step {first} on)" if text and first else text


def _rates(rates: Sequence[float], total: int | None) -> str:
  """Returns the learning rate: one number, or that of the steps that a manifest samples."""
  if len(set(rates)) <= 1:
    return "".join(f"{rate:g}" for rate in rates[:1])
  steps = records.sampled_steps(total or 1)
  pairs = dict(zip(steps, rates, strict=False))
  return ", ".join(f"{rate:g} at step {step}" for step, rate in pairs.items())


def _listed(values: Mapping[str, Any]) -> str:
  return ", ".join(
    f"{name} {value}" for name, value in values.items() if value is not None
  )


def _prompt(path: files.Path) -> files.Path | None:
  """Returns the file of the best prompt, or of the last one, None without any."""
  for which in ("best", "last"):
    prompt = path / f"{which}_prompt.safetensors"
    if prompt.exists():
      return prompt
  return None


def _shown(name: str, value: float | None) -> str:
  if value is None:
    return "-"
  return f"{100 * value:.1f} %" if name in _IN_PERCENT else f"{value:.4g}"


def to_json(
  path: files.Path, manifest: Mapping[str, Any], lines: Lines
) -> dict[str, Any]:
  """Returns what `tpv show RUN --json` states of a run."""
  return {
    "task": manifest.get("task"),
    "status": manifest.get("status"),
    "state": state(path, manifest),
    "last_step": manifest.get("last_step", saved_step(path)),
    "best_step": manifest.get("best_step"),
    "validation": scores(manifest, lines),
    "untuned": manifest.get(records.UNTUNED),
    "majority": manifest.get("majority"),
    "settings": manifest.get("settings"),
    "versions": manifest.get("versions"),
  }
