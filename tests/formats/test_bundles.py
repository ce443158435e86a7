"""Bundles: runs in one file come back whole, and the package's own is what its study gave."""

import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy

from tpv_jax import cli
from tpv_jax.core import files, identity
from tpv_jax.core.errors import UserError
from tpv_jax.data import task_files
from tpv_jax.formats import bundles, sources
from tpv_jax.vectors import algebra, store

REPOSITORY = pathlib.Path(__file__).parents[2]
STUDY = REPOSITORY / "docs/results/small"


@pytest.fixture
def runs(make_run):
  """Three runs, two of them from one initial prompt, one of EPT."""
  made = [
    make_run("study/sst2-0", change=1),
    make_run("study/rte-0", task="rte", change=2),
    make_run("study/sst2-1", seed=1, change=3, method="ept"),
  ]
  for run in made:
    labels = {"zero": "negative", "a": "positive"}  # In no alphabetical order.
    digests = {
      f"{which}_digest": identity.prompt_digest(sources.load(run, which).leaves)
      for which in sources.WHICH
    }
    manifest = {"status": "finished", "subject": {"labels": labels}, **digests}
    (run / "manifest.json").write_bytes(files.json_bytes(manifest))
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
  return made


@pytest.fixture
def bundle(tmp_path, runs):
  path = tmp_path / "bundle.safetensors"
  assert bundles.write(path, map(bundles.of_run, runs)) == path.stat().st_size
  return path


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_unpacked_runs_have_the_bytes_of_those_that_were_packed(tmp_path, runs, bundle):
  made = bundles.unpack(bundles.read(bundle), tmp_path / "out")
  assert made == ["rte-0", "sst2-0", "sst2-1"]
  assert contents(tmp_path / "out/runs") == contents(runs[0].parent)
  for run in runs:
    vector = sources.load(tmp_path / f"out/vectors/{run.name}.safetensors")
    due = algebra.diff(sources.load(run), sources.load(run, "initial"))
    np.testing.assert_array_equal(vector.leaves["prompt"], due.leaves["prompt"])
    assert vector.provenance == due.provenance


def test_equal_prompts_are_stored_once_and_equal_runs_give_equal_bytes(
  tmp_path, runs, bundle
):
  values = safetensors.numpy.load_file(bundle)
  plain = {key for key in values if key.endswith("/prompt")}
  assert plain == {
    *("rte-0/best/prompt", "rte-0/initial/prompt", "rte-0/last/prompt"),
    *("sst2-0/best/prompt", "sst2-0/last/prompt"),
  }
  bundles.write(tmp_path / "again.safetensors", map(bundles.of_run, runs[::-1]))
  assert (tmp_path / "again.safetensors").read_bytes() == bundle.read_bytes()


def test_runs_are_chosen_by_their_own_name_or_by_their_task(bundle):
  found = bundles.read(bundle)
  assert [*bundles.chosen(found, [], bundle)] == ["rte-0", "sst2-0", "sst2-1"]
  assert [*bundles.chosen(found, ["sst2", "rte-0"], bundle)] == [
    *("sst2-0", "sst2-1", "rte-0")
  ]
  with pytest.raises(UserError, match=r"no prompt and no task 'sts2'.*mean 'sst2'"):
    bundles.chosen(found, ["sts2"], bundle)


def test_unpacking_goes_on_where_it_was_stopped_and_replaces_nothing(tmp_path, bundle):
  found, out = bundles.read(bundle), tmp_path / "out"
  bundles.unpack(found, out)
  before = contents(out)
  (out / "vectors/rte-0.safetensors").unlink()
  assert bundles.unpack(found, out) == ["rte-0"]
  assert contents(out) == before
  other = sources.load(out / "runs/sst2-0", "last")
  store.write(out / "vectors/sst2-0.safetensors", *vector_of(other), overwrite=True)
  (out / "vectors/rte-0.safetensors").unlink()
  with pytest.raises(
    UserError, match=r"sst2-0.safetensors' is there already and is an"
  ):
    bundles.unpack(found, out)
  assert not (out / "vectors/rte-0.safetensors").exists()


def test_a_file_is_no_place_to_unpack_to(tmp_path, bundle):
  (tmp_path / "there").write_text("mine")
  with pytest.raises(UserError, match=r"there' is a file. Name a folder, new or not"):
    bundles.unpack(bundles.read(bundle), tmp_path / "there")


def vector_of(prompt):
  start = sources.load(pathlib.Path(prompt.name.removesuffix(":last")), "initial")
  vector = algebra.diff(prompt, start)
  return vector.leaves, vector.provenance


def changed(path, old, new):
  """Writes a bundle with another index, whose digest fits, as anyone could."""
  metadata, arrays = store.read_sealed(path)
  del metadata["content_digest"]
  index = metadata["index"].replace(old, new)
  assert index != metadata["index"]
  content = store.sealed(arrays, {**metadata, "index": index})
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('"sst2-0":{', '"../sst2-0":{', r"'../sst2-0' is no name of a run's folder"),
    ('"initial":{"values"', '"first":{"values"', r"'first' is no prompt of a run"),
    ('"values":"rte-0/best"', '"values":"rte-0/bes"', r"has no values 'rte-0/bes'"),
    ('"values":"rte-0/last"', '"values":"sst2-0/last"', r"not that of its manifest"),
    ('"vector":"', '"vector":"0', r"another vector of 'rte-0'"),
    ('"metrics"', '"other"', r"cannot be read by tpv_jax"),
    ('"metrics":"', '"metrics":1,"other":"', r"metrics or the licence .* are no text"),
    ('"best":{"values"', '"last":{"values"', r"'rte-0' lacks its best prompt"),
    ('"status":"finished"', '"status":NaN', r"Out of range float"),
    ('"vector"', '"another"', r"cannot be read by tpv_jax .*'vector'"),
    ('"measured":null', '"measured":{"rows":"a","hits":{"a":"01","b":"1"}}', r"scores"),
    ('"measured":null', '"measured":{"rows":"a","hits":{"a":"02"}}', r"scores are not"),
    (
      '"measured":null',
      '"measured":{"rows":"a","hits":{}}',
      r"scores are not a 0 or 1",
    ),
  ],
)
def test_an_index_that_contradicts_the_values_is_refused(bundle, old, new, message):
  changed(bundle, old, new)
  with pytest.raises(UserError, match=message):
    bundles.read(bundle)


def test_a_changed_byte_is_noticed(bundle):
  content = bytearray(bundle.read_bytes())
  content[-3] ^= 1
  bundle.write_bytes(content)
  with pytest.raises(UserError, match="was truncated, damaged or changed"):
    bundles.read(bundle)


def test_a_bundle_is_no_prompt_and_a_prompt_is_no_bundle(runs, bundle):
  with pytest.raises(UserError, match=r"bundle of several prompts.*tpv prompts unpack"):
    sources.load(bundle)
  with pytest.raises(UserError, match="holds one prompt or vector and is no bundle"):
    bundles.read(runs[0] / "best_prompt.safetensors")


def test_a_manifest_with_what_json_has_not_is_not_packed(tmp_path, runs):
  manifest = '{"status": "finished", "seconds": 1e999}'
  (runs[0] / "manifest.json").write_text(manifest)
  with pytest.raises(
    UserError, match=r"manifest.json among the runs .*sst2-0.* damaged"
  ):
    bundles.write(tmp_path / "b.safetensors", map(bundles.of_run, runs))
  assert not (tmp_path / "b.safetensors").exists()


def test_only_finished_runs_are_packed(runs):
  (runs[0] / "manifest.json").write_text(json.dumps({"status": "training"}))
  with pytest.raises(UserError, match=r"has not finished \(its status is 'training'\)"):
    bundles.of_run(runs[0])


def test_the_command_lists_and_unpacks_a_bundle(tmp_path, bundle, capsys):
  assert cli.main(["prompts", "list", "rte", "--file", str(bundle), "--json"]) == 0
  ((name, stated),) = json.loads(capsys.readouterr().out).items()
  item = bundles.read(bundle)["rte-0"].prompts["best"]
  assert (name, stated["task"], stated["seed"]) == ("rte-0", "rte", 0)
  assert stated["digest"] == identity.prompt_digest(item.leaves)
  call = ["prompts", "unpack", "rte", "--file", str(bundle), "-o", str(tmp_path / "o")]
  assert cli.main(call) == 0
  assert cli.main(call) == 0
  assert "Wrote 0 runs" in capsys.readouterr().out
  assert [path.name for path in (tmp_path / "o/runs").iterdir()] == ["rte-0"]


def test_fewer_than_no_row_cannot_change(capsys):
  assert cli.main(["prompts", "check", "--most-changed", "-1", "--data-dir", "x"]) == 2
  assert "--most-changed is -1" in capsys.readouterr().err


def test_the_released_prompts_are_those_that_the_study_measured():
  measured = json.loads((STUDY / "measured.json").read_text())
  results = json.loads((STUDY / "results.json").read_text())
  found = bundles.read()
  for name, digest in measured["subject"]["prompts"].items():
    run = found[name]
    stated, seeds = run.to_json(), results["initial_seeds"]
    own = results["single"][run.task]["own"][seeds.index(stated["seed"])]
    assert stated["digest"] == digest
    assert stated["test_examples"] == results["test_examples"][run.task]
    assert stated["scores"] == pytest.approx(
      {metric: own[metric] for metric in stated["scores"]}
    )
    start = identity.prompt_digest(run.prompts["initial"].leaves)
    assert start == measured["subject"]["initial_prompts"][str(stated["seed"])]
    assert stated["fingerprint"] == results["backbone"]["fingerprint"]
  without = {name for name, run in found.items() if run.measured is None}
  assert without == {*found} - {*measured["subject"]["prompts"]}


def test_the_released_prompts_are_small_state_licences_and_no_folder_of_a_machine():
  assert bundles.RELEASED.stat().st_size < 2_000_000
  metadata, _ = store.read_sealed(bundles.RELEASED)
  assert not re.search(r'"(/|~|[^"]*\.\./)[\w./]+"', metadata["index"])
  for run in bundles.read().values():
    path = f"gin_configs/studies/tasks/{run.task}.toml"
    assert run.licence == task_files.read(path).licence
    assert run.licence
    assert run.manifest["subject"]["backbone"] == "smollm2"
