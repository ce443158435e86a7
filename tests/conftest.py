"""Shape annotations are checked while the tests run; JAX runs on the CPU."""

import contextlib
import errno
import importlib.util
import os
import pathlib
import sys

import jaxtyping
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test, worker or subprocess has compiled, the others need not compile again.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
sys.path.append(str(pathlib.Path(__file__).parent))
jaxtyping.install_import_hook("tpv_jax", "shape_checks.check")

from prompt_fixtures import (  # noqa: E402, F401
  ept_initial,
  ept_tuned,
  initial_prompt,
  make_run,
  numpy_fold,
  tuned_prompt,
)


def pytest_addoption(parser):
  parser.addoption("--no-skips", action="store_true", help="a test that skips fails")
  parser.addoption("--wheel", help="the folder that the tested tpv_jax is installed in")


def pytest_sessionstart(session):
  """With --wheel no other tpv_jax is tested, such as that of the clone."""
  wheel = session.config.getoption("wheel")
  origin = importlib.util.find_spec("tpv_jax").origin
  if wheel and not pathlib.Path(origin).is_relative_to(wheel):
    raise pytest.UsageError(f"tpv_jax is imported from {origin}, not from {wheel}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
  """With --no-skips a test that skips fails, and says why it skipped."""
  return _without_skip((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
  """With --no-skips a module that skips fails, too."""
  return _without_skip((yield), collector.config)


def _without_skip(report, config):
  if report.skipped and config.getoption("no_skips"):
    report.outcome, report.longrepr = "failed", str(report.longrepr[-1])
  return report


@pytest.fixture(scope="session")
def tiny():
  """A random backbone of two small layers and a task of copied words (see `Tiny`)."""
  return Tiny()


@pytest.fixture(scope="session")
def hub_models(tmp_path_factory):
  """The folders of a T5 and of a LLaMA, with what a repository has beside them."""
  import hub_server

  return hub_server.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def compiles_faster():
  """XLA optimizes less: for programs that run for less time than they compile."""
  import jax

  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def full_disk():
  """The context (name of a call in `os`, n): its nth call finds no space left."""

  @contextlib.contextmanager
  def full(call, nth):
    real, calls = getattr(os, call), []

    def fail(*arguments):
      calls.append(call)
      if len(calls) == nth:
        raise OSError(errno.ENOSPC, "No space left on device")
      return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(os, call, fail)
      yield

  return full


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """A bucket of an object store, in memory; leaves no folder named 'gs:' behind."""
  import object_store

  object_store.stand_in(monkeypatch)
  monkeypatch.chdir(tmp_path)
  yield "gs://bucket"
  assert not (tmp_path / "gs:").exists()


class Tiny:
  """What a run needs, small enough for a test; every part is rebuilt from fixed seeds."""

  lengths = {"inputs": 8, "targets": 2}  # noqa: RUF012

  def make_network(self):
    """Returns the backbone's network."""
    from tpv_jax.backbones.t5 import network

    return network.Transformer(
      vocab_size=32,
      emb_dim=16,
      num_heads=2,
      head_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
      mlp_dim=32,
      mlp_activations=("relu",),
      logits_via_embedding=True,
    )

  def __init__(self):
    import jax
    import numpy as np

    from tpv_jax.backbones import loading
    from tpv_jax.core import identity
    from tpv_jax.data import tasks, vocabularies
    from tpv_jax.training import optimizers

    words = [f"word{i}" for i in range(29)]
    self.vocabulary = vocabularies.WordVocabulary(words)
    self.network = self.make_network()
    params = self.model(prompt=None).get_initial_variables(jax.random.key(7), {})[
      "params"
    ]
    flat = {path: np.asarray(leaf) for path, leaf in identity.flatten(params).items()}
    self.backbone = loading.Backbone(
      identity.unflatten(flat), "tiny", identity.backbone_fingerprint(flat)
    )

    def examples(split):
      rng = np.random.default_rng(["train", "validation", "test"].index(split))
      rows = rng.integers(0, len(words), (40, 5))
      return [
        tasks.Example(" ".join(words[i] for i in row), words[row.max() % 2])
        for row in rows
      ]

    # One model and one schedule for all runs that ask for no others: compiled once.
    self.plain_model = self.model()
    rates = {"prompt": 1.0, "low_rank": 0.02, "fusion": 0.1, "spaces": 0.1}
    self.ept_model = self.model(
      "ept", optimizers.by_group(optimizers.adamw(weight_decay=1e-5), rates)
    )
    self.schedule = optimizers.constant(0.3)
    self.task = tasks.Task("parity", (words[0], words[1]), "exact_match", examples)

  def model(self, prompt="plain", optimizer=None, trainable="prompt/.*", **parts):
    """Returns a model with the prompt 'plain', 'ept' (with other `parts`) or None."""
    from tpv_jax.model import SoftPromptModel
    from tpv_jax.prompts import ept, plain
    from tpv_jax.training import optimizers

    sizes = {"length": 3, "source_length": 8, "rank": 2, "fusion_width": 2, "spaces": 2}
    prompts = {
      None: lambda: None,
      "plain": lambda: plain.Prompt(length=4, features=16),
      "ept": lambda: ept.EPT(features=16, **(sizes | parts)),
    }
    return SoftPromptModel(
      self.network,
      prompts[prompt](),
      self.vocabulary,
      self.vocabulary,
      optimizer_def=optimizer or optimizers.adamw(weight_decay=1e-5),
      trainable=trainable,
    )

  def data(self, batch_size=8, seed=0):
    from tpv_jax.training.task_data import TaskData

    return TaskData(self.task, self.vocabulary, self.lengths, batch_size, seed)

  def train(self, run_dir, model=None, **settings):
    """Runs 20 steps, by default with the plain prompt; 'ept' is `ept_model`."""
    import functools

    from tpv_jax.training import initial, training

    defaults = {
      "total_steps": 20,
      "learning_rate": self.schedule,
      "backbone": self.backbone,
      "initial_prompt": functools.partial(initial.sampled_vocabulary, length=4),
      "eval_period": 10,
      "log_period": 5,
      "progress": False,
    }
    return training.train(
      model={None: self.plain_model, "ept": self.ept_model}.get(model, model),
      data=settings.pop("data", None) or self.data(),
      run_dir=run_dir,
      **(defaults | settings),
    )

  def train_killed(self, run_dir, monkeypatch, step=10):
    """Runs as `train`, dies after a step's checkpoint, and is continued."""
    from tpv_jax.training import loop

    save = loop.Run.save

    def save_and_die(run, state, best):
      save(run, state, best)
      if int(state.step) == step:
        raise ConnectionError("the machine is gone")

    with monkeypatch.context() as patch:
      patch.setattr(loop.Run, "save", save_and_die)
      with pytest.raises(ConnectionError):
        self.train(run_dir)
    return self.train(run_dir)

  def train_bank(self, folder, prompts):
    """Trains a bank of plain prompts as `train` does; folder '0' is the run of `train`."""
    import functools

    from tpv_jax.banks import bank
    from tpv_jax.training import initial

    entries = [
      bank.Entry(
        self.data(seed=number), folder / str(number), initial_seed=number, seed=number
      )
      for number in range(prompts)
    ]
    bank.train_bank(
      self.plain_model,
      entries,
      total_steps=20,
      learning_rate=self.schedule,
      backbone=self.backbone,
      initial_prompt=functools.partial(initial.sampled_vocabulary, length=4),
      eval_period=10,
      log_period=5,
      progress=False,
    )


class TinyDecoder(Tiny):
  """The same with a decoder-only backbone."""

  def make_network(self):
    """Returns the backbone's network."""
    from tpv_jax.backbones.llama.network import Llama

    return Llama(
      vocab_size=32,
      emb_dim=16,
      num_heads=4,
      num_kv_heads=2,
      head_dim=4,
      num_layers=2,
      mlp_dim=32,
      logits_via_embedding=True,
      max_positions=64,
    )


@pytest.fixture(scope="session")
def tiny_decoder():
  """`tiny` with a decoder-only backbone."""
  return TinyDecoder()
