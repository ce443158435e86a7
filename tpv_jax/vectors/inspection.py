"""What the gate and the fusion of EPT prompts do: numbers, heat maps, one JSON file.

The EPT paper (arXiv 2405.11464) shows the weights of the gate, docs/methods.md, (3.7), for
each task and at the start; here the attention of prompt fusion, (3.4), is shown as well
(ours). The numbers come from `equations` in fp64. matplotlib is imported only when
something is drawn.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.core.figures import Sheet
from tpv_jax.core.tables import aligned
from tpv_jax.prompts import equations
from tpv_jax.vectors import algebra
from tpv_jax.vectors.loaded import Loaded
from tpv_jax.vectors.provenance import describe_terms

JSON, GATE, FUSION = "inspection.json", "gate.png", "fusion.png"
OUTPUTS = (JSON, GATE, FUSION)
"""The files that `write` makes, without the picture of a part that no prompt has."""

_COLUMNS = 6
"""The most heat maps of gates in a row of the picture."""

_DPI = 150


@dataclasses.dataclass(frozen=True)
class Look:
  """What the parts of one EPT prompt do.

  Attributes:
    name: for people.
    prompt: its parameters.
    trained: False for the parameters that training started from.
    gate: the weight of each subspace for each prompt token, (3.7); None without subspaces.
    attention: of each prompt token to each row of delta, (3.4); None without fusion.
    norms: Frobenius norms of 'short_prompt'; of 'fused' and 'projected', which are added to
      it; of their sum 'prompt'; and of 'delta'. Parts that are switched off are missing.
  """

  name: str
  prompt: Loaded
  trained: bool
  gate: Float64[np.ndarray, "S K"] | None
  attention: Float64[np.ndarray, "S M"] | None
  norms: dict[str, float]

  @property
  def gamma(self) -> float | None:
    """The fusion's gamma, None without fusion."""
    leaf = self.prompt.leaves.get("fusion_gamma")
    return None if leaf is None else float(leaf)

  @property
  def gate_means(self) -> list[float] | None:
    """The mean weight of each subspace over the prompt tokens."""
    return None if self.gate is None else self.gate.mean(axis=0).tolist()

  @property
  def gate_entropy(self) -> float | None:
    """The mean over prompt tokens of the gate's entropy in nats; at most ln K."""
    if self.gate is None:
      return None
    logs = np.log(np.where(self.gate > 0, self.gate, 1.0))
    return float(0.0 - (self.gate * logs).sum(axis=1).mean())


def look(prompt: Loaded, name: str) -> Look:
  """Returns what the parts of one EPT prompt do.

  Raises:
    UserError: it has neither gate nor fusion (a vector, or a folded, plain or DePT
      prompt), or its alpha is unknown.
  """
  _refuse_other(prompt)
  folded = algebra.fold(prompt)
  alpha = prompt.provenance.alpha
  assert alpha is not None  # Otherwise `fold` would have refused.
  leaves = {
    leaf: np.asarray(values, np.float64) for leaf, values in prompt.leaves.items()
  }
  short_prompt = leaves["short_prompt"]
  parts = {"short_prompt": short_prompt}
  gate = attention = None
  if "fusion_query" in leaves:
    delta = equations.low_rank_update(leaves["low_rank_a"], leaves["low_rank_b"], alpha)
    attention = equations.fusion_attention(
      short_prompt, delta, leaves["fusion_query"], leaves["fusion_key"]
    )
    parts["fused"] = equations.fused(attention, delta, leaves["fusion_gamma"])
  if "gate_kernel" in leaves:
    gate = equations.gate(short_prompt, leaves["gate_kernel"], leaves["gate_bias"])
    spaces = equations.spaces(short_prompt, leaves["space_down"], leaves["space_up"])
    parts["projected"] = equations.projected(gate, spaces)
  parts |= folded.leaves
  return Look(
    name=name,
    prompt=prompt,
    trained=identity.prompt_digest(prompt.leaves) != prompt.provenance.initial_digest,
    gate=gate,
    attention=attention,
    norms={part: float(np.linalg.norm(values)) for part, values in parts.items()},
  )


def look_at_all(
  prompts: Sequence[tuple[Loaded, Loaded | None]], names: Sequence[str]
) -> list[Look]:
  """Returns a look at each trained prompt, after one at the prompt it started from.

  Args:
    prompts: trained prompts, each with its initial one if that is known. Prompts that
      share an initial prompt are listed together, after one look at it.
    names: one for each trained prompt.

  Raises:
    UserError: a prompt was not tuned from the initial prompt beside it; and as `look`.
  """
  starts: dict[str, list[Look]] = {}
  for (trained, initial), name in zip(prompts, names, strict=True):
    one = look(trained, name)
    start = trained if initial is None else initial
    stated, found = (item.provenance.initial_digest for item in (one.prompt, start))
    if None not in (stated, found) and stated != found:
      raise UserError(
        f"'{trained.name}' was tuned from the initial prompt {str(stated)[:12]}…, and "
        f"'{start.name}' beside it is {str(found)[:12]}…: one is of another run. Bring "
        "back the run's own from a copy."
      )
    group = str(start.provenance.initial_digest if one.trained else id(one))
    if group not in starts:
      starts[group] = []
      if initial is not None and one.trained:
        seed = initial.provenance.initial_seed
        text = "start" if seed is None else f"start (seed {seed})"
        starts[group].append(look(initial, text))
    starts[group].append(one)
  return [one for group in starts.values() for one in group]


def to_json(looks: Sequence[Look]) -> dict[str, Any]:
  """Returns all numbers as JSON; None for parts that a prompt does not have."""
  return {
    "format": "tpv_jax inspection 1",
    "prompts": [
      {
        "name": one.name,
        "path": files.without_folders(one.prompt.name),
        "trained": one.trained,
        "digest": identity.prompt_digest(one.prompt.leaves),
        "provenance": one.prompt.provenance.to_json(),
        "gate": None if one.gate is None else one.gate.tolist(),
        "gate_means": one.gate_means,
        "gate_entropy": one.gate_entropy,
        "fusion_attention": None if one.attention is None else one.attention.tolist(),
        "fusion_gamma": one.gamma,
        "norms": one.norms,
      }
      for one in looks
    ],
  }


def table(looks: Sequence[Look]) -> str:
  """Returns a summary as text, one line for each prompt, with aligned columns.

  The gate's weights are means over the prompt tokens, its entropy is followed by that of
  equal weights, and |x| is a Frobenius norm.
  """
  spaces = max(0 if one.gate is None else one.gate.shape[1] for one in looks)
  norms = ("short_prompt", "fused", "projected", "prompt", "delta")
  cells = [
    [
      "",
      *(f"gate {k + 1}" for k in range(spaces)),
      *(["entropy"] if spaces else []),
      "gamma",
      *(f"|{part}|" for part in norms),
    ]
  ]
  for one in looks:
    means: list[float | None] = [*(one.gate_means or [])]
    entropy = ""
    if one.gate is not None:
      entropy = f"{one.gate_entropy:.3f} of {math.log(one.gate.shape[1]):.3f}"
    cells.append(
      [
        one.name,
        *(_number(mean, ".3f") for mean in [*means, *[None] * (spaces - len(means))]),
        *([entropy or "-"] if spaces else []),
        _number(one.gamma, ".3f"),
        *(_number(one.norms.get(part), ".4g") for part in norms),
      ]
    )
  return aligned(cells)


def check_outputs(folder: files.PathLike, overwrite: bool = False) -> None:
  """Raises `UserError` if `write` would be unable to write its files."""
  path = files.to_path(folder)
  if path.is_file():
    raise UserError(f"'{path}' is a file. Name a folder for what is written.")
  for name in OUTPUTS:
    files.refuse_existing(path / name, overwrite)


def write(
  folder: files.PathLike, looks: Sequence[Look], overwrite: bool = False
) -> None:
  """Writes the heat maps and the JSON file into a folder, created if necessary.

  Each file is written atomically. With `overwrite`, an old picture of a part that none of
  these prompts has is deleted.

  Raises:
    UserError: a file exists and `overwrite` is not set.
  """
  check_outputs(folder, overwrite)
  path = files.to_path(folder)
  pictures = {GATE: draw_gates(looks), FUSION: draw_fusion(looks)}
  path.mkdir(parents=True, exist_ok=True)
  for name, picture in pictures.items():
    if picture is not None:
      files.write_bytes(path / name, picture, overwrite)
    elif (path / name).exists():
      (path / name).unlink()
  text = json.dumps(to_json(looks), ensure_ascii=False, allow_nan=False)
  files.write_text(path / JSON, text + "\n", overwrite)


def draw_gates(looks: Sequence[Look]) -> bytes | None:
  """Returns a PNG of the gates' weights by prompt token and subspace; None without gates.

  All share one colour scale, cividis, which is safe for colour-blind readers.
  """
  shown = [(one, one.gate) for one in looks if one.gate is not None]
  if not shown:
    return None
  columns = min(len(shown), _COLUMNS)
  tokens = max(len(gate) for _, gate in shown)
  spaces = max(gate.shape[1] for _, gate in shown)
  width, height = max(1.5, 0.3 * spaces + 0.5), min(max(2.0, 0.2 * tokens), 8.0)
  sheet = Sheet(columns, "Gate of the multi-space projection", dpi=_DPI)
  for number, (one, gate) in enumerate(shown):
    panel = sheet.panel(width, height, _title(one))
    image = _heat_map(panel, gate, [gate for _, gate in shown])
    panel.set_xticks(range(1, gate.shape[1] + 1))
    panel.set_xlabel("subspace")
    if not number % columns:
      panel.set_ylabel("prompt token")
    if number == columns - 1:
      sheet.colorbar(panel, image, "gate weight (a token's add up to 1)")
  return sheet.png()


def draw_fusion(looks: Sequence[Look]) -> bytes | None:
  """Returns a PNG of the fusion's attention by prompt token and position, or None."""
  shown = [(one, one.attention) for one in looks if one.attention is not None]
  if not shown:
    return None
  columns = 1 if len(shown) <= 4 else 2
  tokens = max(len(attention) for _, attention in shown)
  height = min(max(1.0, 0.12 * tokens), 4.0)
  sheet = Sheet(columns, "Attention of the prompt fusion", dpi=_DPI)
  for number, (one, attention) in enumerate(shown):
    title = (
      f"{_title(one, ', ')}: gamma {one.gamma:.3g}, |fused| {one.norms['fused']:.3g}, "
      f"|short_prompt| {one.norms['short_prompt']:.3g}"
    )
    panel = sheet.panel(6.0, height, title)
    image = _heat_map(panel, attention, [attention for _, attention in shown])
    panel.set_xlabel("source position (row of delta)")
    panel.set_ylabel("prompt token")
    if number == columns - 1:
      sheet.colorbar(panel, image, "attention (a token's add up to 1)")
  return sheet.png()


def _refuse_other(prompt: Loaded) -> None:
  """Raises `UserError` unless these are the parameters of an EPT prompt."""
  known = prompt.provenance
  if known.kind == "vector":
    problem = "is a vector, and a difference has no gate"
  elif known.space == "effective" and known.method in ("ept", "dept"):
    problem = "is folded, and its gate and fusion went into its prompt for good"
  elif known.space == "effective":
    problem = "is a plain prompt, which has neither gate nor fusion"
  elif not {"gate_kernel", "fusion_query"} & set(prompt.leaves):
    problem = "is a DePT prompt, which has neither gate nor fusion"
  else:
    return
  raise UserError(
    f"'{prompt.name}' {problem}: there is nothing to inspect. Give the run folder of an "
    "EPT prompt, or its parameters."
  )


def _number(value: float | None, form: str) -> str:
  return "-" if value is None else format(value, form)


def _title(one: Look, separator: str = "\n") -> str:
  """Returns the name, followed by the tasks if these say more."""
  terms = describe_terms(one.prompt.provenance.terms)
  return one.name if terms in ("none", one.name) else f"{one.name}{separator}{terms}"


def _heat_map(panel: Any, values: np.ndarray, every: Sequence[np.ndarray]) -> Any:
  """Draws one heat map in the colours that all share; prompt tokens count from 1."""
  rows, columns = values.shape
  return panel.imshow(
    values,
    cmap="cividis",
    vmin=0.0,
    vmax=max(one.max() for one in every),
    aspect="auto",
    interpolation="nearest",
    extent=(0.5, columns + 0.5, rows + 0.5, 0.5),
  )
