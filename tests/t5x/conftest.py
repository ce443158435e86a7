"""What the tests under real T5X share; they skip, with the reason, where it is not."""

import functools
import importlib

import pytest

REASON = (
  "T5X cannot be imported ({}): it is not on PyPI; docs/t5x.md says how to install it"
)


@pytest.fixture(scope="session")
def t5x():
  """The package, imported whole; skips the test where that fails."""
  try:
    importlib.import_module("t5x.train")
  except ImportError as error:
    pytest.skip(REASON.format(error))
  return importlib.import_module("t5x")


@pytest.fixture(scope="session")
def tiny_file(tiny, tmp_path_factory):
  """The tiny backbone as one of our files."""
  from tpv_jax.backbones import loading
  from tpv_jax.core import identity

  path = tmp_path_factory.mktemp("backbone") / "tiny.safetensors"
  loading.save_backbone(path, identity.flatten(tiny.backbone.params), "tiny")
  return path


@pytest.fixture(scope="session")
def under_t5x(t5x, tiny, tiny_file):
  """Builds the parts that T5X's train builds, for the tiny backbone by default."""
  return functools.partial(_Parts, tiny, tiny_file)


@pytest.fixture(scope="session")
def llm(t5x, tmp_path_factory):
  """A tiny decoder-only model with a tokenizer of its own (see `Llm`)."""
  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  return Llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def gemma(t5x, tmp_path_factory):
  """A tiny Gemma 3 with the tokenizer and the task of `llm`."""
  import llm_stand_in

  pytest.importorskip("tokenizers", reason="needs the extra 'llm'")
  return Llm(tmp_path_factory.mktemp("gemma"), llm_stand_in.write_gemma)


class Llm:
  """A decoder-only backbone as a GGUF file, and a task whose batches both runners make."""

  lengths = {"inputs": 12, "targets": 3}  # noqa: RUF012

  def __init__(self, folder, write=None):
    import llm_stand_in
    import numpy as np

    from tpv_jax.backbones import loading, networks
    from tpv_jax.data import tasks, vocabularies

    write = write or llm_stand_in.write_gguf
    self.path = str(write(folder / "tiny.gguf"))
    self.network = networks.network(self.path)
    self.vocabulary = vocabularies.of_backbone(self.path)
    self.backbone = loading.load_backbone(self.path)

    def examples(split):
      rng = np.random.default_rng(len(split))
      texts = ["".join(rng.choice([*"abcdef"], n)) for n in rng.integers(0, 11, 48)]
      return [tasks.Example(text, llm_stand_in.LABELS["a" in text]) for text in texts]

    self.task = tasks.Task("letters", llm_stand_in.LABELS[:2], "exact_match", examples)

  def model(self, kind="plain", for_t5x=True, **settings):
    """Returns a model with a plain prompt or EPT, trained by AdamW."""
    from tpv_jax.model import SoftPromptModel
    from tpv_jax.prompts import ept, plain
    from tpv_jax.training import optimizers

    parts = {"source_length": 12, "rank": 2, "fusion_width": 2, "spaces": 2}
    width = self.network.emb_dim
    rates = {"prompt": 1.0, "low_rank": 0.02, "fusion": 0.1, "spaces": 0.1}
    made = SoftPromptModel(
      self.network,
      plain.Prompt(3, width) if kind == "plain" else ept.EPT(3, width, **parts),
      self.vocabulary,
      self.vocabulary,
      optimizers.by_group(
        optimizers.adamw(weight_decay=0.01), rates if kind == "ept" else {}
      ),
      lengths=self.lengths,
      **settings,
    )
    return t5x_model(made) if for_t5x else made

  def batches(self, rows, count):
    """Returns the first batches of seqio, and the same rows as the standalone runner's."""
    import seqio

    from tpv_jax.data import batches
    from tpv_jax.t5x import tasks

    tokenized = batches.tokenize(
      self.task.examples("train"), self.vocabulary, self.lengths
    )
    dataset = seqio.get_mixture_or_task(
      tasks.registered(self.task, self.vocabulary)
    ).get_dataset(self.lengths, "train", shuffle=False)
    theirs = seqio.DecoderFeatureConverter(pack=False)(dataset, self.lengths)
    return (
      [*theirs.batch(rows).take(count).as_numpy_iterator()],
      [*batches.eval_batches(tokenized, rows)][:count],
    )


class _Parts:
  """A model with T5X's partitioner, initialiser and trainer around it."""

  def __init__(self, tiny, tiny_file, model_dir, model=None, backbone=None, **settings):
    from tpv_jax.t5x import mesh, restoring
    from tpv_jax.training import initial

    self.model = model or t5x_model(tiny.model())
    length = settings.pop("length", self.model.prompt.length)
    self.partitioner = settings.pop("partitioner", None) or mesh.partitioner()
    settings = {
      "initial_prompt": functools.partial(initial.sampled_vocabulary, length=length)
    } | settings
    self.model_dir = str(model_dir)
    self.initializer = restoring.Initializer(
      optimizer_def=self.model.optimizer_def,
      init_fn=self.model.get_initial_variables,
      input_shapes=settings.pop("input_shapes", {}),
      partitioner=self.partitioner,
      backbone=str(backbone or tiny_file),
      model_dir=self.model_dir,
      **settings,
    )

  def state(self):
    import jax

    return self.initializer.from_scratch(jax.random.PRNGKey(0))

  def manager(self, restore_dtype="float32"):
    import os

    from t5x import checkpoints

    os.makedirs(self.model_dir, exist_ok=True)
    return checkpoints.OrbaxCheckpointManagerInterface(
      self.model_dir,
      self.initializer.global_train_state_shape,
      self.partitioner,
      save_dtype="float32",
      restore_dtype=restore_dtype,
    )

  def trainer(self, learning_rate, microbatches=None, state=None):
    import jax

    from tpv_jax.t5x import training

    return training.Trainer(
      model=self.model,
      train_state=state or self.state(),
      partitioner=self.partitioner,
      train_state_axes=self.initializer.train_state_axes,
      eval_names=["validation"],
      summary_dir=None,
      rng=jax.random.PRNGKey(1),
      learning_rate_fn=learning_rate,
      num_microbatches=microbatches,
    )

  def trained(self, learning_rate, batches, microbatches=None):
    """Returns the metrics of a step on each batch, and the prompt's leaves after them."""
    import jax
    import numpy as np

    trainer, metrics = self.trainer(learning_rate, microbatches), []
    for batch in batches:
      result = trainer.train(iter([batch]), 1).result()
      metrics.append({name: float(metric.value) for name, metric in result.items()})
    after = jax.tree.map(np.asarray, dict(trainer.train_state.params["prompt"]))
    trainer.close()
    return metrics, after


def t5x_model(model):
  """Returns the model with its transformation made into T5X's optimizer."""
  from tpv_jax.t5x import optimizer

  model.optimizer_def = optimizer.TransformationOptimizer(
    model.optimizer_def, model.trainable
  )
  return model
