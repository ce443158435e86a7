"""gs:// paths do what local paths do, tried on a stand-in (see `object_store`)."""

import importlib.util
import json
import pathlib
import sys
import types

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from object_store import ObjectStore

from tpv_jax import cli
from tpv_jax.backbones import loading
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import text_files, vocabularies
from tpv_jax.evaluation import evaluation
from tpv_jax.formats import sources
from tpv_jax.io import orbax
from tpv_jax.runs import run_folder
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.t5x import saving
from tpv_jax.vectors import store
from tpv_jax.vectors.provenance import Provenance, Term


@pytest.fixture
def runs(bucket, tmp_path):
  """Two runs with their prompts, the same in a local folder and in the bucket."""
  for seed, task in enumerate(("sst2", "rte")):
    values = np.random.default_rng(9).normal(size=(3, 4)).astype(np.float32)
    known = Provenance(
      kind="prompt",
      backbone_name="tiny",
      backbone_fingerprint="ab" * 32,
      initial_digest=identity.prompt_digest({"prompt": values}),
      initial_seed=9,
    )
    trained = {"prompt": values + np.float32(seed + 0.5)}
    run = tmp_path / "runs" / task
    run.mkdir(parents=True)
    store.write(run / "initial_prompt.safetensors", {"prompt": values}, known)
    terms = (Term(task, 1.0),)
    known = Provenance(**{**vars(known), "terms": terms, "steps": 5})
    store.write(run / "best_prompt.safetensors", trained, known)
  upload(tmp_path / "runs", f"{bucket}/runs")
  return tmp_path / "runs"


def upload(folder, destination):
  """Copies a local folder into the stand-in, past the code under test."""
  for path in folder.rglob("*"):
    if path.is_file():
      name = f"{destination.removeprefix('gs://')}/{path.relative_to(folder)}"
      ObjectStore.objects[name] = path.read_bytes()


def tpv(capsys, *arguments):
  """Returns the exit code, what was printed and the errors of a command."""
  code = cli.main([str(argument) for argument in arguments])
  printed = capsys.readouterr()
  return code, printed.out, printed.err


def test_tpv_makes_the_same_files_in_a_bucket_as_in_a_folder(bucket, runs, capsys):
  made = {}
  for where in (str(runs.parent), bucket):
    for task in ("sst2", "rte"):
      path = f"{where}/{task}.safetensors"
      assert tpv(capsys, "diff", f"{where}/runs/{task}", "-o", path)[0] == 0
    vectors = [f"{where}/{task}.safetensors" for task in ("sst2", "rte")]
    output = f"{where}/sum.safetensors"
    assert tpv(capsys, "sum", *vectors, "-w", 1, -0.5, "-o", output)[0] == 0
    prompt = f"{where}/new/prompt.safetensors"
    if where != bucket:  # A bucket has no folders to be made.
      pathlib.Path(prompt).parent.mkdir()
    run = f"{where}/runs/rte"
    code, out, _ = tpv(capsys, "apply", output, run, "-o", prompt)
    assert code == 0
    assert f"Wrote the prompt '{prompt}': " in out
    code, out, _ = tpv(capsys, "cosine", *vectors, output)
    assert code == 0
    shown = json.loads(tpv(capsys, "show", prompt, "--json")[1])
    assert shown.pop("path") == prompt
    digests = [store.content_digest(path) for path in (*vectors, output, prompt)]
    made[where] = out, shown, digests
  assert made[bucket] == made[str(runs.parent)]
  assert ObjectStore.objects["bucket/sum.safetensors"] == (
    (runs.parent / "sum.safetensors").read_bytes()
  )


def test_an_output_that_exists_in_a_bucket_stays_as_it_was(bucket, runs, capsys):
  command = ("diff", f"{bucket}/runs/sst2", "-o", f"{bucket}/sst2.safetensors")
  ObjectStore.objects["bucket/sst2.safetensors"] = b"precious"
  code, _, error = tpv(capsys, *command)
  assert code == 2
  assert "'gs://bucket/sst2.safetensors' exists and was left as it is" in error
  assert ObjectStore.objects["bucket/sst2.safetensors"] == b"precious"
  assert tpv(capsys, *command, "--overwrite")[0] == 0
  assert store.read(f"{bucket}/sst2.safetensors")[1].kind == "vector"
  code, _, error = tpv(capsys, "negate", f"{bucket}/sst2.safetensors", "-o", bucket)
  assert code == 2
  assert "'gs://bucket' does not end in .safetensors" in error
  with pytest.raises(UserError, match="Cannot write 'gs://bucket/runs': it is a fold"):
    files.check_output(f"{bucket}/runs")


def test_a_missing_path_in_a_bucket_names_its_near_misses(bucket, runs):
  for path, expected in (
    ("runs/sst", r"'gs://bucket/runs/sst' does not exist\. Did you mean 'sst2'\?"),
    (
      "run/sst2",
      r"does not exist, because there is no 'gs://bucket/run'\. Did .* 'runs'\?",
    ),
    ("runs/rte/last_prompt.safetensors", "Did you mean '(best|initial)_prompt.safet"),
  ):
    with pytest.raises(UserError, match=expected):
      sources.load(f"{bucket}/{path}")
  with pytest.raises(
    UserError, match=r"because there is no 'gs://none'\. Check the path"
  ):
    sources.load("gs://none/a/b")
  with pytest.raises(
    UserError, match=r"'gs://bucket/runs' is no run .* rte, sst2: giv"
  ):
    sources.load(f"{bucket}/runs")
  with pytest.raises(UserError, match=r"rte' has no last prompt. It has the best and"):
    sources.load(f"{bucket}/runs/rte", "last")
  with pytest.raises(UserError, match="'gs://bucket/runs/rte' is a folder"):
    store.read(f"{bucket}/runs/rte")


def test_what_another_host_writes_is_seen(bucket):
  for name in ("a", "b"):
    ObjectStore.objects[f"bucket/{name}"] = b""
    names = [path.name for path in files.to_path(bucket).iterdir()]
    assert names[-1] == name


def test_damage_in_a_bucket_is_told(bucket, runs):
  name = "bucket/runs/rte/best_prompt.safetensors"
  content = ObjectStore.objects[name]
  flipped = bytearray(content)
  flipped[-3] ^= 1
  for damaged, expected in (
    (bytes(flipped), "truncated, damaged or changed after it was written"),
    (content[:-1], "truncated, damaged or changed after it was written"),
    (content[:60], "is truncated: its header alone needs"),
    (b"", "truncated or no prompt: it has 0 bytes only"),
    (b"\x80\x04" + content, "is a pickle"),
  ):
    ObjectStore.objects[name] = damaged
    with pytest.raises(UserError, match=f"'gs://{name}' .*{expected}"):
      sources.load(f"{bucket}/runs/rte")


def test_a_backbone_is_the_same_backbone_in_a_bucket(bucket, tiny, monkeypatch):
  monkeypatch.setattr(loading, "CACHED_FROM_BYTES", 0)
  monkeypatch.setenv("XDG_CACHE_HOME", "cache")
  flat = identity.flatten(tiny.backbone.params)
  flat["encoder/encoder_norm/scale"] = flat["encoder/encoder_norm/scale"].astype(
    ml_dtypes.bfloat16
  )
  path = f"{bucket}/models/tiny.safetensors"
  fingerprint = loading.save_backbone(path, flat, "tiny", tiny.vocabulary.digest)
  content = ObjectStore.objects["bucket/models/tiny.safetensors"]
  assert {name for name, _ in safetensors.deserialize(content)} == flat.keys()
  loaded = loading.load_backbone(path, tiny.network, tiny.vocabulary)
  assert loaded.fingerprint == fingerprint == identity.backbone_fingerprint(flat)
  assert (loaded.name, loaded.vocabulary) == ("tiny", tiny.vocabulary.digest)
  for name, leaf in identity.flatten(loaded.params).items():
    assert leaf.dtype == flat[name].dtype
    assert leaf.tobytes() == flat[name].tobytes()
    assert leaf.shape == flat[name].shape
  assert not pathlib.Path("cache").exists()  # A remote one is not cached.


def test_a_damaged_backbone_in_a_bucket_is_refused(bucket, tiny):
  path, name = f"{bucket}/tiny.safetensors", "bucket/tiny.safetensors"
  loading.save_backbone(path, identity.flatten(tiny.backbone.params), "tiny")
  content = ObjectStore.objects[name]
  flipped = bytearray(content)
  flipped[-2] ^= 1
  foreign = safetensors.numpy.save({"a": np.zeros(3, np.float32)})
  for damaged, expected in (
    (bytes(flipped), "damaged or changed after it was written"),
    (content[:-8], "truncated"),
    (content[:500], "truncated"),
    (content[:5], "truncated"),
    (b"not a safetensors file", "no safetensors file"),
    (foreign, "not a backbone of tpv_jax"),
    (content.replace(b'"F32"', b'"F16"'), "no safetensors file"),
  ):
    ObjectStore.objects[name] = damaged
    with pytest.raises(UserError, match=f"'{path}'.*{expected}"):
      loading.load_backbone(path)
  with pytest.raises(UserError, match="There is no backbone 'gs://bucket/other'"):
    loading.load_backbone(f"{bucket}/other")


def save(path, tree):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(files.absolute(path), args=ocp.args.PyTreeSave(tree))


def test_orbax_checkpoints_are_read_from_a_bucket(bucket, runs, tiny):
  """Orbax writes them itself; arrays pass through tensorstore's own client."""
  prompt = store.read(runs / "rte" / "best_prompt.safetensors")[0]["prompt"]
  tree = {
    "target": {**tiny.backbone.params, "prompt": {"prompt": prompt}},
    "state": {"step": np.int32(7)},
  }
  checkpoint = f"{bucket}/runs/rte/checkpoint_7"
  save(f"{checkpoint}/state", tree)
  loaded = sources.load(checkpoint)
  np.testing.assert_array_equal(loaded.leaves["prompt"], prompt)
  assert loaded.provenance.steps == 7
  assert loaded.provenance.terms == (Term("rte", 1.0),)  # as the run around it says
  assert str(sources.run_of(checkpoint)) == f"{bucket}/runs/rte"
  assert orbax.shapes(checkpoint) == {"prompt": prompt.shape}
  backbone = loading.load_backbone(checkpoint, tiny.network, tiny.vocabulary)
  assert backbone.fingerprint == tiny.backbone.fingerprint
  assert backbone.name == "rte/checkpoint_7"
  with pytest.raises(UserError, match=r"does not exist. Did you mean 'checkpoint_7'"):
    orbax.read_leaves(f"{bucket}/runs/rte/checkpoint_8")
  arrays = [name for name in ObjectStore.objects if "/state/d/" in name]
  for name in arrays:
    ObjectStore.objects[name] = ObjectStore.objects[name][:-9]
  with pytest.raises(UserError, match=r"'gs://.*checkpoint_7' is truncated or damaged"):
    sources.load(checkpoint)


def test_a_checkpoint_that_a_bucket_holds_in_part_is_refused(bucket):
  path = f"{bucket}/run/checkpoint_3"
  save(f"{path}/state", {"target": {"prompt": {"prompt": np.ones((2, 3))}}})
  del ObjectStore.objects["bucket/run/checkpoint_3/state/commit_success.txt"]
  with pytest.raises(
    UserError, match=r"checkpoint_3' is a checkpoint whose writing was"
  ):
    orbax.read_leaves(path)


def test_evaluation_writes_its_results_and_predictions_to_a_bucket(bucket, tiny):
  leaves = {"prompt": np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)}
  known = Provenance(
    kind="prompt",
    backbone_name="tiny",
    backbone_fingerprint=tiny.backbone.fingerprint,
    terms=(Term("parity", 1.0),),
  )
  store.write(f"{bucket}/run/last_prompt.safetensors", leaves, known)
  backbone = f"{bucket}/tiny.safetensors"
  loading.save_backbone(backbone, identity.flatten(tiny.backbone.params), "tiny")
  arguments = {
    "model": tiny.model(prompt=None),
    "backbone": backbone,
    "tasks": [tiny.task],
    "vocabulary": tiny.vocabulary,
    "lengths": tiny.lengths,
    "output": f"{bucket}/results/test.json",
    "predictions": True,
    "progress": False,
  }
  report = evaluation.evaluate(prompt=f"{bucket}/run", which="last", **arguments)
  assert report["prompt_digest"] == identity.prompt_digest(leaves)
  assert json.loads(ObjectStore.objects["bucket/results/test.json"]) == report
  lines = ObjectStore.objects["bucket/results/test.json.predictions.jsonl"]
  assert lines.count(b"\n") == len(tiny.task.examples("test"))
  with pytest.raises(UserError, match=r"'gs://bucket/results/test.json' exists"):
    evaluation.evaluate(**arguments)
  ObjectStore.objects["bucket/in.txt"] = b"word1 word2\nword3\n"
  inference = {
    "model": arguments["model"],
    "backbone": backbone,
    "vocabulary": tiny.vocabulary,
    "lengths": tiny.lengths,
    "output": f"{bucket}/out.jsonl",
  }
  evaluation.infer(input_file=f"{bucket}/in.txt", **inference)
  rows = ObjectStore.objects["bucket/out.jsonl"].decode().splitlines()
  assert [json.loads(row)["inputs"] for row in rows] == ["word1 word2", "word3"]
  with pytest.raises(UserError, match=r"Cannot read 'gs://bucket/is.txt'.* 'in.txt'"):
    evaluation.infer(
      input_file=f"{bucket}/is.txt", **{**inference, "output": f"{bucket}/b.jsonl"}
    )


def test_vocabularies_and_tables_are_read_from_a_bucket(bucket):
  ObjectStore.objects["bucket/words.txt"] = b"<pad>\n</s>\n<unk>\ngood\nbad\nfilm\n"
  words = vocabularies.WordVocabulary(f"{bucket}/words.txt")
  assert words.digest == vocabularies.WordVocabulary(["good", "bad", "film"]).digest
  with pytest.raises(UserError, match=r"vocabulary 'gs://bucket/w.txt': No such file"):
    vocabularies.WordVocabulary(f"{bucket}/w.txt")
  ObjectStore.objects["bucket/train.tsv"] = b"text\tlabel\n" + b"".join(
    b"film %d\t%s\n" % (i, (b"good", b"bad")[i % 2]) for i in range(40)
  )
  task = {
    "name": "films",
    "template": "{text}",
    "target": "label",
    "labels": ("good", "bad"),
  }
  table = text_files.text_file_task(paths=f"{bucket}/train.tsv", **task)
  pathlib.Path("train.tsv").write_bytes(ObjectStore.objects["bucket/train.tsv"])
  local = text_files.text_file_task(paths="train.tsv", **task)
  assert table.examples("train") == local.examples("train")
  with pytest.raises(UserError, match=r"'gs://bucket/t.tsv': No such.* 'train.tsv'"):
    text_files.text_file_task(paths=f"{bucket}/t.tsv", **task).examples("train")


def test_t5x_keeps_its_prompt_files_in_a_bucket(bucket):
  leaves = {"prompt": np.ones((2, 3), np.float32)}
  known = Provenance(kind="prompt", initial_seed=3, steps=0)
  assert saving.read_provenance(f"{bucket}/t5x", saving.INITIAL) is None
  for _ in range(2):  # A run that goes on writes it again.
    saving.write(f"{bucket}/t5x", saving.INITIAL, leaves, known)
  assert saving.read_provenance(f"{bucket}/t5x", saving.INITIAL) == known
  assert sources.load(f"{bucket}/t5x", "initial").provenance == known


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(
    UserError, match=r"'gs://b/x': .*gcsfs.* \(pip install gcsfs, or "
  ):
    files.to_path("gs://b/x")


@pytest.mark.parametrize("path", ["http://b/x", "s3://b/x", "file:///x"])
def test_a_store_that_is_not_reached_is_refused_by_its_scheme(path):
  # TensorFlow would take some of these names, and fail at their first file.
  scheme = path.partition("://")[0]
  with pytest.raises(UserError, match=f"begins with '{scheme}://', which is not known"):
    files.to_path(path)


def test_a_study_in_a_bucket_is_refused(bucket):
  told = "OUTPUT_DIR is 'gs://bucket/study'; the study"
  study = run_folder.open_output(f"{bucket}/study", "study", "vectors")
  with pytest.raises(UserError, match=told), study:
    pass


@pytest.fixture
def google_cloud_storage(monkeypatch):
  """What Orbax asks about a bucket before it deletes an old checkpoint."""
  client = types.SimpleNamespace(get_bucket=lambda name: object())
  storage = types.SimpleNamespace(Client=lambda: client)
  module = types.ModuleType("google.cloud")
  monkeypatch.setattr(module, "storage", storage, raising=False)
  monkeypatch.setitem(sys.modules, "google.cloud", module)


@pytest.mark.usefixtures("google_cloud_storage")
def test_a_run_in_a_bucket_stops_and_resumes_to_the_same_bits(
  bucket, tiny, tmp_path, monkeypatch
):
  settings = {"checkpoint_period": 5, "best_metric": "exact_match"}
  tiny.train(tmp_path / "run", **settings)
  local = {
    path.name: path.read_bytes()
    for path in (tmp_path / "run").iterdir()
    if path.name.endswith((".jsonl", ".safetensors"))
  }
  assert len(local) == 4

  class Killed(BaseException):
    """A stand-in for SIGKILL: nothing catches it to clean up."""

  def killed(self, step, kind, values):
    if step == 15:
      raise Killed
    append(self, step, kind, values)

  append = RunFolder.append_metrics
  with monkeypatch.context() as until_killed:
    until_killed.setattr(RunFolder, "append_metrics", killed)
    with pytest.raises(Killed):
      tiny.train(f"{bucket}/run", **settings)
  # The newest checkpoint was being written: its last file is not there yet.
  newest = str(orbax.checkpoints_in(f"{bucket}/run")[-1])
  assert newest == f"{bucket}/run/checkpoints/checkpoint_10"
  del ObjectStore.objects[newest.removeprefix("gs://") + "/commit_success.txt"]
  tiny.train(f"{bucket}/run", **settings)
  for name, content in local.items():
    assert ObjectStore.objects[f"bucket/run/{name}"] == content, name
  kept = [path.name for path in orbax.checkpoints_in(f"{bucket}/run")]
  assert kept == ["checkpoint_15", "checkpoint_20"]
  (events, *_) = [name for name in ObjectStore.objects if "events.out.tfevents" in name]
  assert b"validation/exact_match" in ObjectStore.objects[events]
  assert sources.load(f"{newest[:-2]}20").provenance.steps == 20

  with pytest.raises(UserError, match="'gs://bucket/run' holds a run with another ini"):
    tiny.train(f"{bucket}/run", **settings, initial_seed=3)
  tiny.train(f"{bucket}/run", **settings, initial_seed=3, overwrite=True)
  assert ObjectStore.objects["bucket/run/metrics.jsonl"] != local["metrics.jsonl"]
  with pytest.raises(UserError, match="'gs://bucket' is not empty and holds no run"):
    tiny.train(bucket, **settings)


def test_a_run_in_a_bucket_needs_what_orbax_deletes_with(bucket, tiny, monkeypatch):
  monkeypatch.setitem(sys.modules, "google.cloud", types.ModuleType("google.cloud"))
  with pytest.raises(
    UserError, match="The run folder is 'gs://bucket/run', where Orbax delet"
  ):
    tiny.train(f"{bucket}/run")
  assert not ObjectStore.objects
