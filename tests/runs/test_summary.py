"""What a run says when it has ended, and what `tpv show RUN` says of it later."""

import functools
import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from tpv_jax import cli
from tpv_jax.banks import bank, bank_steps
from tpv_jax.core.errors import UserError
from tpv_jax.devices import partitioning
from tpv_jax.runs import curves, summary
from tpv_jax.runs.run_folder import RunFolder
from tpv_jax.training import initial, steps
from tpv_jax.vectors import store

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  run = tmp_path_factory.mktemp("finished") / "a run"
  return run, tiny.train(run)


def ending(run):
  folder = RunFolder(run)
  return summary.ended(folder.path, folder.manifest(), folder.metrics())


def test_a_finished_run_shows_its_best_against_untuned_and_majority(finished):
  run, manifest = finished
  lines = ending(run)
  assert lines[0] == f"Trained 'parity' for 20 steps; the run is in '{run}'."
  best = next(
    line
    for line in RunFolder(run).metrics()
    if (line["step"], line["kind"]) == (manifest["best_step"], "validation")
  )
  rows = [line.split() for line in lines[2:]]
  name = ["best,", "step", str(manifest["best_step"])]
  percent = [f"{100 * best[metric]:.1f}" for metric in ("exact_match", "accuracy")]
  assert rows[0] == [*name, f"{best['loss']:.4g}", percent[0], "%", percent[1], "%"]
  (untuned,) = [row for row in rows if row[:1] == ["untuned"]]
  assert untuned[1] == f"{manifest['untuned']['loss']:.4g}"
  (majority,) = [row for row in rows if row[:1] == ["always"]]
  assert majority[1] == f"'{manifest['majority']['label']}'"


def test_untuned_is_what_the_initial_prompt_scores_on_validation(tiny, finished):
  run, manifest = finished
  prompt, _ = store.read(run / "initial_prompt.safetensors")
  params = {**tiny.backbone.params, "prompt": prompt}
  sums = None
  for batch in tiny.data().validation_batches():
    new = tiny.plain_model.eval_fn(params, batch)[1]
    sums = new if sums is None else {name: sums[name].merge(new[name]) for name in new}
  expected = {name: float(metric.compute()) for name, metric in sums.items()}
  # The same program in another compilation: fp32 sums in another order.
  assert manifest["untuned"] == pytest.approx(expected, rel=1e-5)


def test_majority_is_the_most_common_validation_target(tiny, finished):
  targets = Counter(example.targets for example in tiny.task.examples("validation"))
  label, count = min(targets.items(), key=lambda item: (-item[1], item[0]))
  share = count / targets.total()
  assert finished[1]["majority"] == {"label": label, "share": share}


def test_the_embeddings_are_stated_as_the_prompt_stands_beside_them(tiny, finished):
  table = np.asarray(tiny.backbone.table, np.float64)
  expected = {
    "deviation": table.std(),
    "norm": np.linalg.norm(table, axis=1).mean(),
  }
  # Rounded to 6 digits.
  assert finished[1]["embeddings"] == pytest.approx(expected, rel=1e-5)


def test_the_commands_that_a_run_shows_are_right_as_they_are(
  finished, tmp_path, monkeypatch
):
  lines = ending(finished[0])
  commands = lines[lines.index("Next:") + 1 :]
  assert len(commands) >= 2
  monkeypatch.chdir(tmp_path)
  for line in commands:
    command, *arguments = shlex.split(line, comments=True)
    assert command == "tpv"
    assert cli.main(arguments) == 0, line
  assert (tmp_path / "a run.safetensors").is_file()


def test_the_first_validation_is_no_new_program(tiny, tmp_path):
  model = tiny.model()
  tiny.train(tmp_path / "run", model=model)
  built = steps.build(model, tiny.schedule, 1, partitioning.make_mesh())
  assert built.validate._cache_size() == 1


def without_times(manifest):
  return {key: v for key, v in manifest.items() if not key.startswith("seconds_")}


def test_a_killed_run_ends_with_the_manifest_and_the_picture_of_an_unbroken_one(
  tiny, finished, tmp_path, monkeypatch
):
  run = tmp_path / "a run"
  manifest = tiny.train_killed(run, monkeypatch)
  assert without_times(manifest) == without_times(finished[1])
  # Its seconds are those of what was left to do.
  assert "seconds_from_step" not in finished[1]
  assert 0 < manifest["seconds_from_step"] < manifest["last_step"]
  picture = (run / "curves.png").read_bytes()
  assert picture.startswith(PNG)
  assert picture == (finished[0] / "curves.png").read_bytes()


def test_a_run_of_an_earlier_version_goes_on_without_untuned(tiny, finished, tmp_path):
  run = tmp_path / "a run"
  shutil.copytree(finished[0], run)
  shutil.rmtree(run / "checkpoints" / "checkpoint_20")
  old = {
    key: value
    for key, value in finished[1].items()
    if key not in ("untuned", "majority", "embeddings", "best_step", "best_metric")
  }
  (run / "manifest.json").write_text(json.dumps(old | {"status": "running"}))
  manifest = tiny.train(run)
  assert "untuned" not in manifest
  assert manifest["last_digest"] == finished[1]["last_digest"]
  assert not any(line.startswith("  untuned") for line in ending(run))
  assert (run / "metrics.jsonl").read_bytes() == (
    finished[0] / "metrics.jsonl"
  ).read_bytes()


def test_a_run_without_matplotlib_says_so_and_ends(tiny, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert tiny.train(tmp_path / "run", total_steps=5)["status"] == "finished"
  assert "matplotlib is not installed" in capsys.readouterr().out
  assert not (tmp_path / "run" / "curves.png").exists()


def test_a_picture_that_cannot_be_written_ends_no_run(
  tiny, tmp_path, monkeypatch, capsys
):
  def broken(*_):
    raise ValueError("bogus is no backend")

  monkeypatch.setattr(curves, "one", broken)
  assert tiny.train(tmp_path / "run", total_steps=5)["status"] == "finished"
  picture = tmp_path / "run" / "curves.png"
  assert (
    f"'{picture}', the picture of the curves, is not written: ValueError: bogus"
    in capsys.readouterr().out
  )
  picture.mkdir()
  assert not curves.write(picture, curves.many, {})
  assert "IsADirectoryError" in capsys.readouterr().out


START = functools.partial(initial.sampled_vocabulary, length=4)


def train_bank(tiny, folder, seeds, **settings):
  """Trains a bank of one initial prompt and other orders of the rows."""
  entries = [
    bank.Entry(tiny.data(seed=seed), folder / f"run-{seed}", seed=seed)
    for seed in seeds
  ]
  defaults = {
    "total_steps": 10,
    "learning_rate": tiny.schedule,
    "backbone": tiny.backbone,
    "initial_prompt": START,
    "eval_period": 5,
    "log_period": 5,
    "progress": False,
  }
  return bank.train_bank(tiny.plain_model, entries, **(defaults | settings))


def test_a_bank_measures_equal_initial_prompts_once(
  tiny, finished, tmp_path, monkeypatch
):
  measured, validate = [], bank_steps.validate

  def spying(steps, state, frozen, calls):
    calls = list(calls)
    measured.append(sum(int((c["decoder_loss_weights"] > 0).sum()) for c in calls))
    return validate(steps, state, frozen, calls)

  monkeypatch.setattr(bank_steps, "validate", spying)
  manifests = train_bank(tiny, tmp_path, (0, 1))
  first, *later = measured
  assert later == [2 * first, 2 * first]
  assert manifests[0]["untuned"] == manifests[1]["untuned"]
  # fp32 sums in the order of packed rows.
  assert manifests[0]["untuned"] == pytest.approx(finished[1]["untuned"], rel=1e-5)


def test_a_bank_shows_a_row_for_each_prompt_and_one_picture(tiny, tmp_path, capsys):
  manifests = train_bank(tiny, tmp_path, (0, 1), progress=True)
  printed = capsys.readouterr().out
  for number, manifest in enumerate(manifests):
    (row,) = [
      line.split()
      for line in printed.splitlines()
      if line.startswith(f"  {tmp_path}/run-{number} ")
    ]
    assert row[1:3] == ["finished", str(manifest["best_step"])]
    assert row[3] == f"{manifest['best_metric']['loss']:.4g}"
    assert row[-2:] == [f"{100 * manifest['majority']['share']:.1f}", "%"]
  assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def shown(capsys, *arguments):
  assert cli.main(["show", *map(str, arguments)]) == 0
  return capsys.readouterr().out


def test_show_repeats_what_a_run_reached_with_its_settings(finished, capsys):
  run, manifest = finished
  printed = shown(capsys, run)
  for line in summary.reached(manifest, RunFolder(run).metrics()):
    assert line in printed
  for text in (
    "state         finished after step 20",
    "steps         20\nrows a step   8\n",
    "learning rate 0.3",
    "lengths       inputs 8, targets 2",
    "its best prompt",
    f"digest        {manifest['best_digest']}",
  ):
    assert text in printed
  content = json.loads(shown(capsys, run, "--json"))
  assert content["digest"] == manifest["best_digest"]
  assert content["run"]["untuned"] == manifest["untuned"]
  assert content["run"]["settings"] == manifest["settings"]


def test_show_says_how_an_unfinished_run_is_continued(finished, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(finished[0], run)
  shutil.rmtree(run / "checkpoints" / "checkpoint_20")
  left = {
    key: value
    for key, value in finished[1].items()
    if not key.startswith(("best", "last"))
  }
  (run / "manifest.json").write_text(json.dumps(left | {"status": "stopped"}))
  (run / "best_prompt.safetensors").unlink()
  printed = shown(capsys, run)
  assert (
    "stopped (checkpoint of step 10 of 20); the command that began it, given again, "
    "continues it"
  ) in printed
  assert f"best, step {finished[1]['best_step']}" in printed
  assert "has no best prompt (its status is 'stopped')" in printed
  content = json.loads(shown(capsys, run, "--json"))["run"]
  assert (content["status"], content["last_step"]) == ("stopped", 10)


def test_show_refuses_a_run_whose_prompt_is_not_its_own(finished, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(finished[0], run)
  shutil.copy(run / "initial_prompt.safetensors", run / "best_prompt.safetensors")
  assert cli.main(["show", str(run)]) == 2
  printed = capsys.readouterr()
  assert "is not the best prompt of its run" in printed.err
  assert printed.out == ""


def test_show_of_a_run_does_not_import_jax(finished):
  code = (
    "import sys; from tpv_jax import cli; cli.main(sys.argv[1:]); "
    "print('jax' in sys.modules, 'matplotlib' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "show", str(finished[0])],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.splitlines()[-1] == "False False"


def test_a_diverged_run_says_so_when_it_is_shown(tiny, tmp_path, capsys):
  run = tmp_path / "run"
  with pytest.raises(UserError, match="NaN or infinite at step 1"):
    tiny.train(run, learning_rate=lambda step: jax.numpy.inf)
  assert "failed (checkpoint of step 0 of 20 steps): Loss, gradient" in shown(
    capsys, run, "--which", "last"
  )
