"""Makes the references of merge rules: what mergekit and PEFT say of three vectors.

Writes `merging.npz` beside this file: `vectors` [3, P, D], `cases` as JSON, and the merged
array of each case under its number. mergekit's rules get a base of zeros where they need
one. For rules that draw masks, the masks are those of torch: mergekit's are stored with the
probabilities that it drew them with, PEFT's with the density. It imports nothing of
tpv_jax, so that an error there cannot hide here. Needs the extra 'parity' and mergekit,
which is LGPL and so only called:

  pip install --no-deps 'mergekit>=0.1.5'
  python tests/references/make_merge_references.py           # writes the file
  python tests/references/make_merge_references.py --check   # compares
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np
import torch
from mergekit.merge_methods import merge_tensors
from peft.utils import merge_utils

PATH = pathlib.Path(__file__).with_name("merging.npz")
SHAPE = (6, 16)
EVEN, UNEVEN = [1.0, 1.0, 1.0], [0.5, 1.5, 1.0]

MERGEKIT = [
  ("task_arithmetic", {}, UNEVEN),
  ("linear", {}, UNEVEN),
  ("ties", {"density": 0.3}, EVEN),
  ("ties", {"density": 0.3}, UNEVEN),
  ("ties", {"density": [0.2, 0.5, 0.9]}, UNEVEN),
  ("ties", {"density": 1.0}, UNEVEN),
  ("breadcrumbs", {"density": 0.6, "gamma": 0.1}, UNEVEN),
  ("breadcrumbs", {"density": 0.95, "gamma": 0.2}, EVEN),
  ("breadcrumbs_ties", {"density": 0.6, "gamma": 0.1}, UNEVEN),
  ("sce", {"select_topk": 1.0}, None),
  ("sce", {"select_topk": 0.3}, None),
  ("multislerp", {}, UNEVEN),
  ("karcher", {}, None),
  ("model_stock", {}, None),
]
TWO = [
  ("slerp", {"t": 0.3}, None),
  ("nuslerp", {"nuslerp_flatten": True}, UNEVEN[:2]),
  ("nuslerp", {"nuslerp_flatten": False}, UNEVEN[:2]),
]
NO_BASE = ("linear", "slerp", "nuslerp", "multislerp", "karcher")
NORMALIZED = ("ties", "breadcrumbs_ties", "della")
DELLA = [
  ("della_linear", {"density": 0.5, "epsilon": 0.2}, UNEVEN),
  ("della", {"density": 0.6, "epsilon": 0.3}, UNEVEN),
]
PEFT = [
  ("task_arithmetic", {}, UNEVEN),
  ("magnitude_prune", {"density": 0.3}, UNEVEN),
  ("ties", {"density": 0.3}, EVEN),
]
DARE = [
  ("dare_linear", {"density": 0.4}, UNEVEN),
  ("dare_ties", {"density": 0.4}, EVEN),
]


def mergekit(tensors, rule, options, weights):
  """Returns the merge of mergekit, as fp32."""
  given = dict(options)
  base = [] if rule in NO_BASE else [torch.zeros(SHAPE)]
  if weights is not None:
    given["weight"] = weights
  if rule in NORMALIZED:
    given["normalize"] = True
  if rule.startswith("della"):
    given["rescale"] = False
  # slerp needs a base, and interpolates from it.
  index = 0 if base or rule == "slerp" else None
  return merge_tensors([*base, *tensors], rule, parameters=given, base_index=index)


def peft(tensors, rule, options, weights):
  """Returns the merge of PEFT, as fp32."""
  return getattr(merge_utils, rule)(tensors, torch.tensor(weights), **options)


class Masks:
  """Notes what `torch.bernoulli` is asked for within a block, and what it gives."""

  def __enter__(self):
    self.probabilities, self.masks = [], []
    self.original = torch.bernoulli

    def noting(given):
      mask = self.original(given)
      self.probabilities.append(given.numpy().copy())
      self.masks.append(mask.numpy().copy())
      return mask

    torch.bernoulli = noting
    return self

  def __exit__(self, *error):
    torch.bernoulli = self.original


def references():
  """Returns the arrays of the file."""
  torch.manual_seed(0)
  rng = np.random.default_rng(0)
  lengths = np.array([1.0, 2.0, 0.7])[:, None, None]
  vectors = (lengths * rng.normal(size=(3, *SHAPE))).astype(np.float32)
  tensors = list(torch.from_numpy(vectors))
  arrays, cases = {"vectors": vectors}, []

  def add(who, rule, options, weights, number=3):
    key = str(len(cases))
    run = {"mergekit": mergekit, "PEFT": peft}[who]
    with Masks() as noted:
      arrays[key] = run(tensors[:number], rule, options, weights).numpy()
    if noted.masks:
      arrays[f"{key}/masks"] = np.stack(noted.masks).astype(bool)
      arrays[f"{key}/probabilities"] = np.stack(noted.probabilities).astype(np.float32)
    cases.append(
      {"by": who, "rule": rule, "options": options, "weights": weights, "of": number}
    )

  for case in (*MERGEKIT, *DELLA):
    add("mergekit", *case)
  for case in TWO:
    add("mergekit", *case, number=2)
  for case in (*PEFT, *DARE):
    add("PEFT", *case)
  versions = {name: importlib.metadata.version(name) for name in ("mergekit", "peft")}
  return arrays | {
    "cases": np.array(json.dumps(cases)),
    "versions": np.array(json.dumps(versions)),
  }


def main() -> int:
  made = references()
  if sys.argv[1:] == ["--check"]:
    with np.load(PATH, allow_pickle=False) as stored:
      differing = [
        name
        for name in made.keys() | set(stored.files)
        if name != "versions"
        and not (
          name in stored and name in made and np.array_equal(stored[name], made[name])
        )
      ]
    print(
      f"{PATH.name}: {'differs in ' + ', '.join(differing) if differing else 'equal'}"
    )
    return int(bool(differing))
  if sys.argv[1:]:
    print(__doc__)
    return 2
  np.savez_compressed(PATH, **made)
  print(f"{PATH.name}: {PATH.stat().st_size} bytes")
  return 0


if __name__ == "__main__":
  sys.exit(main())
