"""Each study of the registry, as small as can be: settings to run it, results to draw.

A study that is registered needs an entry in both, and is tested by `conformance`.
"""

import contextlib
import dataclasses
import functools
import inspect

import numpy as np
import pytest


def _common(tiny, folder):
  """A random backbone and tasks of copied words: their numbers mean nothing."""
  from tpv_jax.backbones import loading
  from tpv_jax.core import identity

  path = folder / "tiny.safetensors"
  if not path.exists():
    loading.save_backbone(path, identity.flatten(tiny.backbone.params), "tiny")
  return {
    "backbone": str(path),
    "vocabulary": tiny.vocabulary,
    "lengths": tiny.lengths,
    "initial_seeds": (0, 1),
    "progress": False,
  }


def _named(tiny, *names):
  return [dataclasses.replace(tiny.task, name=name) for name in names]


def _start():
  from tpv_jax.training import initial

  return functools.partial(initial.sampled_vocabulary, length=4)


def study(tiny, folder):
  """Of three tasks; a bank."""
  return _common(tiny, folder) | {
    "model": tiny.plain_model,
    "tasks": _named(tiny, "a", "b", "c"),
    "initial_prompt": _start(),
    "learning_rate": tiny.schedule,
    "total_steps": 2,
    "batch_size": 8,
    "eval_period": 2,
    "coefficients": (0.5, 1.0),
    "search_examples": 8,
    "as_bank": True,
  }


def few_shot(tiny, folder):
  """Of one target and three sources."""
  from tpv_jax.studies.few_shot import Target

  *source_tasks, target = _named(tiny, "a", "b", "c", "d")
  return _common(tiny, folder) | {
    "model": tiny.plain_model,
    "source_tasks": source_tasks,
    "targets": [Target(target, "a", "b", "c", "Of copied words.")],
    "initial_prompt": _start(),
    "learning_rate": tiny.schedule,
    "shots": [0, 30],
    "source_steps": 4,
    "source_batch_size": 8,
    "source_eval_period": 4,
    "total_steps": 4,
    "eval_period": 2,
    "coefficient": 0.5,
    "validation_examples": 8,
    "test_examples": 40,
  }


def merging(tiny, folder):
  """Of three tasks and some rules, one of which takes two vectors only."""
  return _common(tiny, folder) | {
    "model": tiny.plain_model,
    "tasks": _named(tiny, "a", "b", "c"),
    "initial_prompt": _start(),
    "learning_rate": tiny.schedule,
    "total_steps": 2,
    "batch_size": 8,
    "eval_period": 2,
    "rules": ["ties", "slerp", "concat"],
    "budget": 3,
    "search_examples": 8,
  }


def ablation(tiny, folder):
  """Of two tasks at one length."""
  from tpv_jax.studies.ablation import Form
  from tpv_jax.training import initial, optimizers

  return _common(tiny, folder) | {
    "network": tiny.network,
    "tasks": _named(tiny, "one", "two"),
    "initial_prompt": initial.sampled_vocabulary,
    "transformation": optimizers.adamw(),
    "prompt_length": 16,
    "total_steps": 2,
    "batch_size": 8,
    "eval_period": 2,
    "plain_rates": [0.3],
    "decomposed_rates": [(0.3, 0.03)],
    "tuning_tasks": ["two"],
    "form": Form(fusion_width=1, spaces=1, bottleneck=1),
    "repetitions": 3,
  }


def moving(tiny, folder):
  """Of two tasks, two starts and two lengths."""
  from tpv_jax.training import initial

  return _common(tiny, folder) | {
    "model": tiny.plain_model,
    "tasks": _named(tiny, "a", "b"),
    "starts": {
      "small_normal": initial.small_normal,
      "sampled_vocabulary": initial.sampled_vocabulary,
      "class_labels": initial.class_labels,
    },
    "start": "small_normal",
    "scale": 0.1,
    "learning_rate": tiny.schedule,
    "total_steps": 2,
    "batch_size": 8,
    "eval_period": 2,
    "variants": [{"start": "class_labels"}, {"length": 5, "rate": 0.5}],
    "coefficients": (0.5, 1.0),
    "validation_examples": 8,
    "search_examples": 8,
    "test_examples": 16,
  }


ARGUMENTS = {
  "study": study,
  "few-shot": few_shot,
  "merging": merging,
  "moving": moving,
  "ablation": ablation,
}
"""Name -> (tiny, an empty folder) -> what its function takes, OUTPUT_DIR aside."""

_FINISHED = {}


def finished(name, tiny, make_folder):
  """Returns the settings, the folder and the results of a study, run once a process."""
  if name not in _FINISHED:
    from tpv_jax.studies import registry

    arguments = ARGUMENTS[name](tiny, make_folder("backbone"))
    folder, run = make_folder(name) / "out", registry.study(name).run
    more = {"config": lambda: "x = 1\n", "command": "python -m x"}
    taken = {k: v for k, v in more.items() if k in inspect.signature(run).parameters}
    with three_methods():
      results = run(**arguments, output_dir=folder, **taken)
    _FINISHED[name] = arguments, folder, results
  return _FINISHED[name]


@contextlib.contextmanager
def kept(folder):
  """Puts back what another call writes beside the runs, for other tests to read."""
  before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
  yield
  for path, content in before.items():
    path.write_bytes(content)


@contextlib.contextmanager
def three_methods():
  """Leaves three methods out of an ablation: each takes seconds to compile."""
  from tpv_jax.studies.methods import METHODS

  with pytest.MonkeyPatch.context() as patch:
    for name in [name for name in METHODS if "without" in name]:
      patch.delitem(METHODS, name)
    yield


def drawn_study(names, seeds):
  """Of one task, too, where there is no sum."""
  import itertools

  rng = np.random.default_rng(len(names))

  def scores():
    return rng.choice([0.0, 0.4, 0.97, 1.0], len(seeds)).tolist()

  count = len(names) * len(seeds)
  combinations = [*itertools.combinations(names, 2)]
  combinations += [tuple(names)] if len(names) > 2 else []
  return {
    "tasks": names,
    "initial_seeds": seeds,
    "single": {
      name: {
        "no_prompt": {"exact_match": 0.0},
        "own": [{"exact_match": score} for score in scores()],
        "other_initial": scores(),
        "control": [0.0] * len(seeds),
      }
      for name in names
    },
    "sums": [
      {"tasks": list(some), "scores": {name: scores() for name in some}}
      for some in combinations
    ],
    "cosine": {
      kind: np.clip(rng.standard_normal((count, count)), -1, 1).tolist()
      for kind in ("prompts", "vectors")
    },
  }


def drawn_few_shot(names, seeds):
  """Of the names as targets."""
  from tpv_jax.studies import starts

  rng = np.random.default_rng(len(names))
  return {
    "targets": dict.fromkeys(names),
    "initial_seeds": seeds,
    "starts": starts.STARTS,
    "scores": {
      number: {
        start: {
          name: rng.choice([0.0, 0.4, 0.97, 1.0], len(seeds)).tolist() for name in names
        }
        for start in starts.STARTS
      }
      for number in ("0", "5", "10", "25", "100", "1000")
    },
  }


def drawn_merging(names, seeds):
  """Of all rules; one of them was left out where it could not be."""
  from tpv_jax.studies.merging import BASELINES
  from tpv_jax.vectors.merging.registry import BY_DATA, RULES

  rng = np.random.default_rng(len(names))

  def means():
    tasks = {name: float(rng.choice([0.0, 0.4, 0.97, 1.02])) for name in names}
    return {"tasks": tasks, "retention": 0.5, "worst": None}

  methods = {method: means() for method in (*BASELINES, *RULES, *BY_DATA)}
  methods["tsv"]["tasks"].pop(names[0])
  return {
    "tasks": names,
    "initial_seeds": seeds,
    "rules": [*RULES, *BY_DATA],
    "summary": {"2": methods},
  }


def drawn_ablation(names, seeds):
  """Of all methods; at the second length with fewer initial prompts."""
  from tpv_jax.studies.methods import METHODS

  rng = np.random.default_rng(len(names))
  return {
    "tasks": names,
    "initial_seeds": seeds,
    "labels": {name: method.label for name, method in METHODS.items()},
    "prompt_length": 32,
    "prompt_lengths": [32, 48],
    "scores": {
      length: {
        method: {name: rng.choice([0.0, 0.4, 0.97, 1.0], n).tolist() for name in names}
        for method in METHODS
      }
      for length, n in (("32", len(seeds)), ("48", 2))
    },
  }


def drawn_moving(names, seeds):
  """Of starts of four scales."""
  rng = np.random.default_rng(len(names))

  def scores():
    values = rng.choice([0.0, 0.4, 0.97, 1.0], (len(seeds), 2))
    return [{"exact_match": x, "label_accuracy": y} for x, y in values.tolist()]

  return {
    "tasks": names,
    "initial_seeds": seeds,
    "variants": [
      {
        "tasks": {
          name: {
            "ratio": [ratio] * len(seeds),
            **{kind: scores() for kind in ("own", "moved", "summed", "control")},
          }
          for name in names
        }
      }
      for ratio in (0.02, 0.4, 3.0, 40.0)
    ],
  }


DRAWN = {
  "study": drawn_study,
  "few-shot": drawn_few_shot,
  "merging": drawn_merging,
  "moving": drawn_moving,
  "ablation": drawn_ablation,
}
"""Name -> (names of tasks, initial seeds) -> what its pictures show."""
