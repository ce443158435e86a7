import json

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.data import english, exported, few_shot, registry, transforms
from tpv_jax.data.recipes import Recipe, value
from tpv_jax.data.text_files import text_file_task
from tpv_jax.embedded import suite

RECIPE = Recipe(
  task="pairs",
  template="first: {a} {{second}}: {b}",
  target="label",
  labels={"0": "no", "1": "yes"},
)


def test_a_source_has_the_words_of_the_template_and_tells_where_columns_are():
  source, fields = RECIPE.source({"a": "x y", "b": 3, "other": None}, "row 1")
  assert source == "first: x y {second}: 3"
  assert [source[start:stop] for start, stop in fields] == ["x y", "3"]
  assert RECIPE.columns == ("a", "b")
  assert RECIPE.words == ("no", "yes")


def test_a_value_is_text_as_json_spells_it():
  row = {"a": None, "b": float("nan"), "c": True, "d": 1.5, "e": "nan"}
  assert [value(row, column, "row") for column in row] == ["", "", "true", "1.5", "nan"]


def test_an_answer_is_the_word_of_the_value():
  assert RECIPE.answer("1", "row 1") == "yes"
  with pytest.raises(UserError, match="row 1: 'yess' in column 'label' is outside"):
    RECIPE.answer("yess", "row 1")


@pytest.mark.parametrize(
  "recipe",
  [
    RECIPE,
    Recipe("free", "{a}", "b", None, "pearson", True, "0.2"),
    exported.recipe_of(registry.definition("super_glue_wsc")),
  ],
)
def test_a_recipe_comes_back_from_json(recipe):
  stated = json.loads(json.dumps(recipe.to_json()))
  assert Recipe.from_json(stated, "manifest.json") == recipe


@pytest.mark.parametrize(
  ("change", "fault"),
  [
    ({"template": None}, "states template = None"),
    ({"template": "no column"}, "names no column"),
    ({"labels": {"0": 1}}, "states labels"),
    ({"labels": {}}, "states labels"),
    ({"change": "exec"}, "states change = 'exec'"),
    ({"round_targets_to": "0"}, "states round_targets_to"),
    ({"allow_empty": "yes"}, "states allow_empty"),
    ({"newer": 1}, "states 'newer', which this version"),
  ],
)
def test_a_manifest_with_another_recipe_is_refused(change, fault):
  with pytest.raises(UserError, match=fault):
    Recipe.from_json(RECIPE.to_json() | change, "manifest.json")
  with pytest.raises(UserError, match="states no template and target"):
    Recipe.from_json([], "manifest.json")


def test_every_kind_of_task_has_the_recipe_of_its_examples(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("text,label\nfine,1\n")
  tasks = [
    (suite.task("sentiment"), {"text": suite.examples("sentiment", "test")[0].inputs}),
    (
      text_file_task("t", str(path), "review: {text}", "label", {"1": "good"}),
      {"text": "fine"},
    ),
  ]
  for task, row in tasks:
    first = task.load("test" if task.name == "sentiment" else "train")[0]
    assert task.recipe.source(row, "row")[0] == first.inputs
    assert task.recipe.words == task.labels
  first = english.task("topic").load("test")[0]
  text = first.inputs.removeprefix("Sentence: ").removesuffix(" Topic:")
  assert english.task("topic").recipe.source({"text": text}, "row") == (
    first.inputs,
    first.fields,
  )


@pytest.mark.parametrize("name", list(registry.DEFINITIONS))
def test_a_papers_task_makes_the_same_source_by_its_recipe(name):
  from tpv_jax.data.papers import definition

  which = registry.definition(name)
  for row in definition.example_rows(which):
    names = {
      column: classes[row[column]] if isinstance(row[column], int) else row[column]
      for column, classes in which.classes.items()
    }
    row = row | names
    example = which.example(row, "row", "test")
    if example is None:
      continue
    unlabelled = {k: v for k, v in row.items() if k != which.target}
    recipe = exported.recipe_of(which)
    assert recipe.source(unlabelled, "row")[0] == example.inputs
    if which.target in row and which.target != "answer":
      assert recipe.answer(str(row[which.target]).strip(), "row") == example.targets


def test_a_task_made_from_another_has_its_recipe_only_if_it_still_holds():
  task = suite.task("sentiment")
  assert few_shot.few_shot(task, 5).recipe == task.recipe
  rotated = transforms.rotated(task)
  values = list(task.recipe.labels)
  assert [rotated.recipe.labels[value] for value in values] == [*values[1:], values[0]]
  assert transforms.beside("two", task, suite.task("topic")).recipe is None
  assert transforms.mixture("mix", [task, suite.task("topic")]).recipe is None
