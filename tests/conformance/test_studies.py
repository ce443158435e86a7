"""What every study of the registry does; a new one is tested by being registered."""

import dataclasses
import functools
import inspect
import json
import re

import pictures
import pytest
import studies_at_work

from tpv_jax.cli import verbs
from tpv_jax.core import checks
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation.evaluator import Evaluator
from tpv_jax.studies import base, registry
from tpv_jax.studies.report.writer import Report

every_study = pytest.mark.parametrize("name", registry.STUDIES)

LONG = "super_glue_multirc_turned_{}_beside_a_question_that_means_$nothing$_at_all"


@pytest.fixture(scope="module")
def arguments(tiny, tmp_path_factory):
  """Returns the settings of the smallest run of a study, by its name."""
  folder = tmp_path_factory.mktemp("backbone")
  return functools.cache(lambda name: studies_at_work.ARGUMENTS[name](tiny, folder))


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
  """Returns settings, folder and results of a study that has run, by its name."""
  make = tmp_path_factory.mktemp
  return lambda name: studies_at_work.finished(name, tiny, make)


def test_a_name_that_is_no_study_is_refused_with_the_near_one():
  with pytest.raises(UserError, match=r"no study 'few_shot'\. Did you mean 'few-shot'"):
    registry.study("few_shot")


@every_study
def test_it_keeps_the_protocol(name):
  study = registry.study(name)
  assert dataclasses.is_dataclass(study)
  assert study.__dataclass_params__.frozen
  asked = {*vars(base.Study), *base.Study.__annotations__} - {"settings"}
  assert {one for one in asked if one[0] != "_"} <= set(dir(study))
  assert "settings" in {field.name for field in dataclasses.fields(study)}
  assert isinstance(study.report, Report)


@every_study
def test_it_has_a_verb(name):
  assert name in verbs.GROUPS["studies"]


@every_study
def test_what_gin_configures_is_flat_and_documented(name):
  run = registry.study(name).run
  parameters = inspect.signature(run).parameters
  shared = {field.name for field in dataclasses.fields(base.Settings)}
  assert shared - {"network", "command"} <= set(parameters)
  kinds = {parameter.kind for parameter in parameters.values()}
  assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
  described = re.findall(
    r"^    (\w+): ", inspect.getdoc(run).replace("\n", "\n  "), re.M
  )
  assert set(parameters) <= set(described)
  assert set(parameters) <= set(checks.annotations(run))


@every_study
@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"output_dir": "gs://bucket/x"}, "needs a folder of this machine"),
    ({"initial_seeds": (3,)}, "at least two"),
    ({"initial_seeds": (3, 4, 3)}, "Two INITIAL_SEEDS are '3'"),
    ({"initial_seeds": (-1, 0)}, r"initial_seeds\[0\] is -1"),
    ({"lengths": {"inputs": 8}}, "lengths is"),
    ({"lengths": {"inputs": 8, "targets": 1}}, r"Set LENGTHS\['targets'\]"),
  ],
)
def test_settings_are_refused_before_anything_is_written(
  arguments, tmp_path, name, changed, message
):
  given = {**arguments(name), "output_dir": tmp_path / "out", **changed}
  with pytest.raises(UserError, match=message):
    registry.study(name).run(**given)
  assert not list(tmp_path.iterdir())


@every_study
def test_tasks_of_one_name_are_refused(arguments, tmp_path, name):
  given = arguments(name)
  (tasks,) = {"tasks", "source_tasks"} & set(given)
  twice = [given[tasks][0], *given[tasks]]
  with pytest.raises(UserError, match=f"Two .* are '{twice[0].name}'"):
    registry.study(name).run(**{**given, tasks: twice}, output_dir=tmp_path / "out")


@every_study
def test_tasks_of_free_texts_that_exact_match_says_little_of_are_refused(
  arguments, tmp_path, name
):
  given = arguments(name)
  (tasks,) = {"tasks", "source_tasks"} & set(given)
  free = dataclasses.replace(given[tasks][0], labels=None, metric="squad_f1")
  changed = {tasks: [free, *given[tasks][1:]]}
  with pytest.raises(UserError, match=f"'{free.name}'.*labels"):
    registry.study(name).run(**{**given, **changed}, output_dir=tmp_path / "out")
  assert not list(tmp_path.iterdir())


@every_study
def test_a_folder_of_something_else_is_left_as_it_is(arguments, tmp_path, name):
  (tmp_path / "mine.txt").write_text("mine")
  study = registry.study(name)
  with pytest.raises(UserError, match=f"holds no {study.work} of tpv_jax"):
    study.run(**arguments(name), output_dir=tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@every_study
def test_it_writes_its_results_its_report_and_every_picture_in_that(finished, name):
  _, folder, results = finished(name)
  assert json.loads((folder / "results.json").read_text()) == results
  assert {"backbone", "initial_seeds", "versions", "device"} <= set(results)
  assert {"summary", "seconds"} <= set(results)
  assert (folder / "config.gin").read_text() == "x = 1\n"
  text = (folder / "report.md").read_text()
  shown = re.findall(r"!\[[^\]]+\]\((.+)\)", text)
  assert set(shown) == set(registry.study(name).report.pictures(results))
  for picture in shown:
    assert (folder / picture).read_bytes().startswith(b"\x89PNG")
  assert (folder / registry.study(name).part).is_dir()


@every_study
def test_a_finished_one_trains_and_measures_nothing_again(
  finished, monkeypatch, capsys, name
):
  arguments, folder, results = finished(name)

  def score(*_):
    raise AssertionError("measured again")

  monkeypatch.setattr(Evaluator, "score", score)
  monkeypatch.setattr("tpv_jax.training.cost.measure", score)
  before = {p: p.stat().st_mtime_ns for p in folder.rglob("*_prompt.safetensors")}
  with studies_at_work.three_methods(), studies_at_work.kept(folder):
    again = registry.study(name).run(**arguments, output_dir=folder)
  volatile = {"seconds", "date", "command"}
  assert {k: v for k, v in again.items() if k not in volatile} == {
    k: v for k, v in results.items() if k not in volatile
  }
  assert before
  assert before == {
    p: p.stat().st_mtime_ns for p in folder.rglob("*_prompt.safetensors")
  }
  assert f"Report: {folder / 'report.md'}" in capsys.readouterr().out


@every_study
def test_its_pictures_show_what_was_measured(finished, name):
  _, _, results = finished(name)
  for sheet in registry.study(name).report.pictures(results).values():
    pictures.check(sheet)


@every_study
@pytest.mark.parametrize(
  ("count", "form"),
  [(1, LONG), (2, "t{}"), (2, LONG), (3, "t{}"), (5, LONG), (20, LONG)],
)
def test_its_pictures_can_be_read_for_few_and_many_tasks_and_long_names(
  name, count, form
):
  names = [form.format(number) for number in range(count)]
  results = studies_at_work.DRAWN[name](names, [0, 7, 100])
  for sheet in registry.study(name).report.pictures(results).values():
    panels = pictures.check(sheet)
    written = " ".join(
      text.get_text() for axes in panels for text in axes.findobj(pictures.TEXT)
    )
    assert "n = 3" in written or "Cosine" in written
