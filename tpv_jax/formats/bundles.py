"""Bundles: the prompts of several runs in one safetensors file, to be handed on.

Its values are fp32, those of a prompt under `KEY/LEAF`; equal prompts, such as the initial
one of several runs, are stored once. Its metadata are

    content_digest  as of the files of `vectors.store`
    format          "tpv_jax prompts 1"
    index           JSON, {"runs": {NAME: RUN}}
    written_by      "tpv_jax <version>"

and a RUN is

    prompts   'best', 'last', 'initial' -> {"values": KEY, "provenance": {...}}
    vector    the digest of best - initial, which is made again and not stored
    manifest  the content of the run's manifest.json
    metrics   the text of its metrics.jsonl
    measured  see `Measured`; null if its scores were not measured
    licence   of the data that it was tuned on; null if that is not known

So a run comes back whole: with its provenance, ready to answer, and known as finished to a
bank or study that goes on with it. Equal content gives equal bytes.
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tpv_jax.core import errors, files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.core.version import VERSION
from tpv_jax.formats import sources
from tpv_jax.io import safetensors
from tpv_jax.vectors import algebra, store
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import Provenance

RELEASED = pathlib.Path(__file__).parents[1] / "released" / "smollm2.safetensors"
"""The bundle that comes with the package: those of the study in docs/results.md."""

RUNS, VECTORS = "runs", "vectors"
"""Folders of an unpacked bundle, and of a study."""

_NAME = re.compile(r"\w[\w.-]*")
"""The names of runs, which become those of folders."""


@dataclasses.dataclass(frozen=True)
class Measured:
  """Which rows of a test split a prompt answered right.

  Attributes:
    rows: the digest of these rows (`data.tasks.digest`), which are the split's first ones.
    hits: metric -> '0' or '1' for each row.
  """

  rows: str
  hits: Mapping[str, str]

  def __post_init__(self) -> None:
    """Raises `ValueError` unless all metrics have as many rows, and there is one."""
    counts = {len(one) for one in self.hits.values()}
    if len(counts) != 1 or 0 in counts or set("".join(self.hits.values())) - {*"01"}:
      raise ValueError("its scores are not a 0 or 1 for each row")

  @property
  def examples(self) -> int:
    """How many rows there are."""
    return len(next(iter(self.hits.values())))

  @property
  def scores(self) -> dict[str, float]:
    """The share of right answers, by metric."""
    return {name: one.count("1") / len(one) for name, one in self.hits.items()}


@dataclasses.dataclass(frozen=True)
class Bundled:
  """A run in a bundle; the attributes are those of a RUN in the index.

  Attributes:
    name: of its folder.
    prompts: 'best', 'initial' and perhaps 'last'.
  """

  name: str
  prompts: Mapping[str, Loaded]
  manifest: Mapping[str, Any]
  metrics: str
  measured: Measured | None = None
  licence: str | None = None

  @property
  def task(self) -> str:
    """The name of its task, as its best prompt states it."""
    return ", ".join(self.prompts["best"].provenance.tasks)

  @property
  def vector(self) -> Loaded:
    """Its task vector, named as the run."""
    made = algebra.diff(self.prompts["best"], self.prompts["initial"])
    return dataclasses.replace(made, name=self.name)

  def to_json(self) -> dict[str, Any]:
    """Returns what a list of prompts states of it."""
    best = self.prompts["best"]
    return {
      "task": self.task,
      "seed": best.provenance.initial_seed,
      "steps": best.provenance.steps,
      "backbone": best.provenance.backbone_name,
      "fingerprint": best.provenance.backbone_fingerprint,
      "digest": identity.prompt_digest(best.leaves),
      "initial_digest": best.provenance.initial_digest,
      "vector_digest": identity.prompt_digest(self.vector.leaves),
      "scores": None if self.measured is None else self.measured.scores,
      "test_examples": None if self.measured is None else self.measured.examples,
      "licence": self.licence,
    }


def of_run(
  run: pathlib.Path, measured: Measured | None = None, licence: str | None = None
) -> Bundled:
  """Returns a finished run, for `write`.

  Raises:
    UserError: it has not finished, or lacks a prompt or its manifest.
  """
  manifest = files.read_json(run / "manifest.json", most_bytes=1 << 26)
  if manifest.get("status") != "finished":
    raise UserError(
      f"The run '{run}' has not finished (its status is '{manifest.get('status')}'), so it "
      "is not packed. Continue it, or move it elsewhere."
    )
  there = [which for which in sources.WHICH if (run / _file(which)).exists()]
  prompts = {which: sources.load(run, which) for which in {*there, "best", "initial"}}
  metrics = run / "metrics.jsonl"
  text = metrics.read_text() if metrics.exists() else ""
  return Bundled(run.name, prompts, manifest, text, measured, licence)


def write(
  path: files.PathLike, runs: Iterable[Bundled], overwrite: bool = False
) -> int:
  """Writes a bundle, atomically; returns its size in bytes.

  Raises:
    UserError: as `store.write`; there are no runs, or a name is no name of a folder.
  """
  store.check_output(path, overwrite)
  keys: dict[str, str] = {}  # Digest of a prompt -> where its values are.
  arrays: dict[str, np.ndarray] = {}
  index: dict[str, Any] = {}
  for run in sorted(runs, key=lambda one: one.name):
    _check_name(run.name, "It is to be packed")
    stated = {}
    for which, item in sorted(run.prompts.items()):
      digest = identity.prompt_digest(item.leaves)
      key = keys.setdefault(digest, f"{run.name}/{which}")
      arrays |= {f"{key}/{name}": leaf for name, leaf in item.leaves.items()}
      stated[which] = {"values": key, "provenance": item.provenance.to_json()}
    index[run.name] = {
      "prompts": stated,
      "vector": identity.prompt_digest(run.vector.leaves),
      "manifest": run.manifest,
      "metrics": run.metrics,
      "measured": None if run.measured is None else dataclasses.asdict(run.measured),
      "licence": run.licence,
    }
  if not index:
    raise UserError("There are no runs to pack.")
  try:
    text = _text({"runs": index})
  except ValueError as error:
    raise UserError(
      f"A manifest.json among the runs {errors.some(index, 6)} is damaged: {error}. Take "
      "that run out."
    ) from error
  metadata = {
    "format": store.BUNDLE,
    "index": text,
    "written_by": f"tpv_jax {VERSION}",
  }
  content = store.sealed(arrays, metadata, safetensors.MAX_HEADER_BYTES)
  files.write_bytes(path, content, overwrite)
  return len(content)


def read(path: files.PathLike = RELEASED) -> dict[str, Bundled]:
  """Returns the runs of a bundle by name.

  Raises:
    UserError: there is no such file, it is no bundle, or it was changed.
  """
  metadata, arrays = store.read_sealed(path, safetensors.MAX_HEADER_BYTES)
  if metadata.get("format") != store.BUNDLE:
    raise UserError(
      f"'{path}' holds one prompt or vector and is no bundle of several (its format is "
      f"'{metadata.get('format')}'). Look at it with: tpv show {shlex.quote(str(path))}."
    )
  try:
    index = files.parse_json(metadata["index"])["runs"]
    _text(index)  # NaN and infinity could not be written to a run's folder again.
    runs = {name: _run(name, stated, arrays) for name, stated in index.items()}
    vectors = {name: stated["vector"] for name, stated in index.items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"The bundle '{path}' cannot be read by tpv_jax {VERSION}: {error}. Read it with the "
      "version that wrote it."
    ) from error
  for name, run in runs.items():
    if identity.prompt_digest(run.vector.leaves) != vectors[name]:
      raise UserError(
        f"The bundle '{path}' states another vector of '{name}' than its prompts give. "
        "Take another copy."
      )
  return runs


def chosen(
  runs: Mapping[str, Bundled], names: Sequence[str], path: files.PathLike
) -> dict[str, Bundled]:
  """Returns the runs of these names or of these tasks; all of them for no names.

  Raises:
    UserError: there is no such run and no such task.
  """
  found: dict[str, Bundled] = {}
  for name in names or runs:
    some = {key: run for key, run in runs.items() if name in (key, run.task)}
    if not some:
      known = [*runs, *{run.task: None for run in runs.values()}]
      raise UserError(
        f"There is no prompt and no task '{name}' in '{path}'."
        f"{errors.near_misses(name, known)} It has {errors.some(runs, 6)}; all: tpv "
        "prompts list."
      )
    found |= some
  return found


def unpack(runs: Mapping[str, Bundled], folder: files.PathLike) -> list[str]:
  """Writes run folders and vectors, as a study has them, and returns the new ones' names.

  What is there with the same values stays as it is, so that a call that was stopped is
  made again.

  Raises:
    UserError: something else is there; then nothing is written.
  """
  root = files.to_path(folder)
  if root.is_file():
    raise UserError(f"'{folder}' is a file. Name a folder, new or not.")
  missing = [run for run in runs.values() if not _is_there(root, run)]
  for run in missing:
    for part in (RUNS, VECTORS):
      (root / part).mkdir(parents=True, exist_ok=True)
    made = root / RUNS / run.name
    if not made.exists():
      with files.new_folder(made) as place:
        _write_run(place, run)
    path = root / VECTORS / f"{run.name}.safetensors"
    if not path.exists():
      store.write(path, run.vector.leaves, run.vector.provenance)
  return [run.name for run in missing]


def _is_there(root: files.Path, run: Bundled) -> bool:
  """Returns whether a run and its vector are there, both with the bundle's values."""
  places = {
    root / RUNS / run.name: run.prompts["best"],
    root / VECTORS / f"{run.name}.safetensors": run.vector,
  }
  there = [path for path in places if path.exists()]
  for path in there:
    found, ours = (
      identity.prompt_digest(item.leaves) for item in (sources.load(path), places[path])
    )
    if found != ours:
      raise UserError(
        f"'{path}' is there already and is another one (digest {found[:12]}…, and the "
        f"bundle's {ours[:12]}…). Give another folder."
      )
  return len(there) == len(places)


def _write_run(folder: files.Path, run: Bundled) -> None:
  for which, item in run.prompts.items():
    store.write(folder / _file(which), item.leaves, item.provenance)
  files.write_json(folder / "manifest.json", run.manifest)
  if run.metrics:
    files.write_text(folder / "metrics.jsonl", run.metrics)


def _text(index: Mapping[str, Any]) -> str:
  """Returns JSON with the keys in their order: that of a manifest's labels counts."""
  return json.dumps(index, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _file(which: str) -> str:
  return f"{which}_prompt.safetensors"


def _run(name: str, stated: Any, arrays: Mapping[str, np.ndarray]) -> Bundled:
  """Returns a run of an index; any fault is a `ValueError`, `KeyError` or `TypeError`."""
  _check_name(name, "It is in the bundle")
  prompts = {}
  for which, one in stated["prompts"].items():
    if which not in sources.WHICH:
      raise ValueError(f"'{which}' is no prompt of a run")
    key = f"{one['values']}/"
    leaves = {
      path.removeprefix(key): leaf
      for path, leaf in sorted(arrays.items())
      if path.startswith(key)
    }
    if not leaves:
      raise ValueError(f"it has no values '{one['values']}'")
    shown = f"{name}: {which}"
    provenance = Provenance.from_json(one["provenance"])
    store.refuse_shapes(leaves, shown)
    store.check_provenance(leaves, provenance, shown)
    prompts[which] = Loaded(leaves, provenance, name)
  for which in ("best", "initial"):
    if which not in prompts:
      raise ValueError(f"'{name}' lacks its {which} prompt")
  measured, manifest = stated["measured"], stated["manifest"]
  for which in prompts:
    digest = identity.prompt_digest(prompts[which].leaves)
    if manifest.get(f"{which}_digest") not in (None, digest):
      raise ValueError(f"the {which} prompt of '{name}' is not that of its manifest")
  metrics, licence = stated["metrics"], stated["licence"]
  if not isinstance(metrics, str) or not isinstance(licence, str | None):
    raise ValueError(f"the metrics or the licence of '{name}' are no text")
  return Bundled(
    name,
    prompts,
    manifest,
    metrics,
    None if measured is None else Measured(measured["rows"], measured["hits"]),
    licence,
  )


def _check_name(name: str, why: str) -> None:
  if not _NAME.fullmatch(name):
    raise UserError(
      f"{name!r} is no name of a run's folder. {why}; names are letters, digits, '_', '-' "
      "and '.'."
    )
