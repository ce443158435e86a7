"""Settings: what a user sets is read, or refused by its name, before anything runs."""

import importlib
import inspect
import pathlib
import re

import gin
import pytest

from tpv_jax.banks import bank
from tpv_jax.core import checks
from tpv_jax.core.errors import UserError
from tpv_jax.evaluation import evaluation
from tpv_jax.settings import gin_files, refusals
from tpv_jax.studies import ablation, few_shot, study
from tpv_jax.training import training

RUNS = "gin_configs/runs/"
TASK = ("TASK_NAME='topic'", "RUN_DIR='r'")
OWN_TASKS = """\
from __gin__ import dynamic_registration
from tpv_jax.data import text_files
TASKS = [@one/text_files.text_file_task(), @two/text_files.text_file_task()]
text_files.text_file_task.template = '{x}'
text_files.text_file_task.target = 'y'
one/text_files.text_file_task.name = 'one'
one/text_files.text_file_task.paths = 'one.tsv'
two/text_files.text_file_task.name = 'two'
two/text_files.text_file_task.paths = 'two.tsv'
"""


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


@pytest.fixture
def checked(tmp_path):
  """Returns a function that checks files (names, or texts of files) and bindings."""

  def check(entry, given, *bindings):
    names = []
    for index, text in enumerate(given):
      if text.endswith(".gin"):
        names.append(text)
        continue
      path = tmp_path / f"mine{index}.gin"
      path.write_text(text)
      names.append(str(path))
    parsed = gin_files.parse(names, bindings)
    arguments = ("config", "command")
    return [
      line.replace(f"{tmp_path}/", "")
      for line in refusals.check(entry, parsed, arguments)
    ]

  return check


@pytest.mark.parametrize(
  ("entry", "files", "bindings"),
  [
    (training.train, ["embedded"], TASK),
    (training.train, ["embedded_ept"], TASK),
    (training.train, ["pretrain_embedded"], ("RUN_DIR='r'",)),
    (bank.train_bank, ["bank_embedded"], ("OUTPUT_DIR='o'", "TASK_NAMES=['nli']")),
    (
      evaluation.evaluate,
      ["eval_embedded"],
      ("VECTOR=['a', ['b', 'c']]", "SEARCH=[0]"),
    ),
    (evaluation.infer, ["infer_embedded"], ("INPUT_FILE='i'", "OUTPUT='o'")),
    (
      evaluation.infer,
      ["infer_llm"],
      ("TEMPERATURE=0.7", "TOP_P=0.9", "SAMPLING_SEED=3"),
    ),
    (study.study, ["demo"], ("OUTPUT_DIR='o'", "AS_BANK=False")),
    (ablation.ablation, ["ablation"], ("OUTPUT_DIR='o'", "TUNING_TASKS=['nli']")),
    (few_shot.compare_starts, ["few_shot_embedded"], ("OUTPUT_DIR='o'", "SHOTS=[0]")),
  ],
)
def test_what_the_shipped_runs_take_is_read(checked, entry, files, bindings):
  assert checked(entry, [f"{RUNS}{file}.gin" for file in files], *bindings) == []


@pytest.mark.parametrize(
  ("entry", "given", "bindings", "message"),
  [
    (
      training.train,
      ["embedded"],
      ("TRAIN_STEP=3",),
      r"TRAIN_STEP \(--gin\) is read by nothing that this command runs. Did you mean "
      "'TRAIN_STEPS'",
    ),
    (
      training.train,
      ["embedded", "TRAIN_STEP = 3\n"],
      (),
      r"TRAIN_STEP \(.*mine1.gin:1\) is read by nothing.*Did you mean 'TRAIN_STEPS'",
    ),
    (
      training.train,
      ["embedded"],
      ("optimizers.adafactor.decay_rate=0.5",),
      "optimizers.adafactor.decay_rate.*as it does not call optimizers.adafactor",
    ),
    (
      training.train,
      ["embedded"],
      ("training.train.total_steps=2", "TRAIN_STEPS=3"),
      r"TRAIN_STEPS \(--gin\) is read by nothing",
    ),
    (
      training.train,
      ["embedded"],
      ("task_data.TaskData.seed=1", "DATA/task_data.TaskData.seed=2"),
      "task_data.TaskData.seed .*a narrower scope sets seed",
    ),
    (
      study.study,
      ["demo", OWN_TASKS],
      ("OUTPUT_DIR='o'", "TASK_NAMES=['topic']"),
      r"TASK_NAMES \(--gin\) is read by nothing.*Did you mean 'TASKS'",
    ),
    (
      evaluation.evaluate,
      ["eval_embedded", "TRAIN_STEPS = 3\nRUN_DIR = 'r'\n"],
      (),
      r"^RUN_DIR \(.*mine1.gin:2\) is read by nothing",
    ),
    (
      evaluation.infer,
      ["infer_embedded", "LABELS = ['a']\nTASKS = []\nRUN_DIR = 'r'\n"],
      ("INPUT_FILE='i'", "OUTPUT='o'"),
      r"^TASKS .*mine1.gin:2.* RUN_DIR .*mine1.gin:3",
    ),
    (
      evaluation.evaluate,
      ["eval_embedded", "gin_configs/tasks/trec.gin", "gin_configs/tasks/math.gin"],
      (),
      "names the task 'trec' and .* the task 'math': the second would replace",
    ),
    (
      evaluation.evaluate,
      ["eval_embedded", "TASK_NAME = 'one'\n", "TASK_NAME = 'two'\n"],
      (),
      "mine1.gin:1 names the task 'one' and .*mine2.gin:1 the task 'two'",
    ),
    (
      training.train,
      ["embedded"],
      (),
      "RUN_DIR, TASK_NAME must be given: pass --gin.R",
    ),
    (
      training.train,
      ["embedded", "TRAIN_STEPS = %STEPS_OF_TRAINING\n"],
      TASK,
      "mine1.gin:1 uses %STEPS_OF_TRAINING, which no file sets",
    ),
    (
      training.train,
      ["train"],
      ("RUN_DIR='r'",),
      r"BACKBONE, MODEL, VOCABULARY: gin_configs/backbones; INITIAL_PROMPT: "
      "gin_configs/prompts; LENGTHS, TASK: gin_configs/tasks",
    ),
    (
      training.train,
      ["embedded", "LEARNING_RATE = %MY\nMY = %LEARNING_RATE\n"],
      (),
      "in a circle: %(MY needs %LEARNING_RATE|LEARNING_RATE needs %MY) needs %",
    ),
    (
      training.train,
      ["embedded", "TASK = [%TASKS]\nTASKS = [%TASK]\n"],
      (),
      "in a circle: %TASKS? needs %TASKS? needs %TASK",
    ),
    (
      training.train,
      ["embedded"],
      ("optimizers.adamw.b1=%OPTIMIZER",),
      "in a circle: .*@optimizers.adamw\\(\\)",
    ),
    (
      training.train,
      ["embedded"],
      (*TASK, "INITIAL_PROMPT=@initial.uniform()"),
      r"initial.uniform needs table, seed.*is written without \(\)",
    ),
    (
      training.train,
      ["TASK_NAME = 'topic'\n"],
      (),
      r"none configures training.train. Add a run file.*gin_configs/runs/embedded.gin",
    ),
    (evaluation.infer, ["eval_embedded"], (), "none configures evaluation.infer"),
  ],
)
def test_what_is_not_read_or_not_given_is_refused(
  checked, entry, given, bindings, message
):
  files = [text if re.search(r"\W", text) else f"{RUNS}{text}.gin" for text in given]
  if "RUN_DIR" not in message and entry is training.train:
    bindings = (*TASK, *bindings)
  with pytest.raises(UserError, match=message):
    checked(entry, files, *bindings)


def test_a_shared_file_may_set_what_other_commands_read(checked):
  mine = "TRAIN_STEPS = 3\nHALF = 5\nWARMUP_STEPS = %HALF\nBATCH_SIZE = 8\n"
  assert checked(evaluation.evaluate, [f"{RUNS}eval_embedded.gin", mine]) == [
    "Not read by this command: TRAIN_STEPS, HALF, WARMUP_STEPS (mine1.gin)."
  ]


def test_a_macro_of_the_users_own_may_be_used_by_others(checked):
  mine = "MY_STEPS = 4\nTRAIN_STEPS = %MY_STEPS\n"
  assert checked(training.train, [f"{RUNS}embedded.gin", mine], *TASK) == []
  assert gin.query_parameter("%MY_STEPS") == 4


def test_the_tasks_of_the_user_are_those_of_the_study(checked):
  checked(study.study, [f"{RUNS}demo.gin", OWN_TASKS], "OUTPUT_DIR='o'")
  tasks = gin.get_bindings(study.study)["tasks"]
  assert [task.name for task in tasks] == ["one", "two"]


def test_a_required_value_may_be_given_before_the_file_that_asks_for_it(checked):
  mine = "TASK_NAME = 'nli'\nRUN_DIR = 'here'\n"
  assert checked(training.train, [mine, f"{RUNS}embedded.gin"]) == []
  assert gin.query_parameter("%RUN_DIR") == "here"
  assert gin.query_parameter("%TASK_NAME") == "nli"


def test_the_later_of_the_users_own_files_wins(checked):
  files = [f"{RUNS}embedded.gin", "TRAIN_STEPS = 3\n", "TRAIN_STEPS = 4\n"]
  assert checked(training.train, files, *TASK) == []
  assert gin.query_parameter("%TRAIN_STEPS") == 4


def test_what_a_file_names_the_run_does_not_reach_need_not_be_given(checked):
  mine = (
    "from __gin__ import dynamic_registration\n"
    "from tpv_jax.embedded import suite\n"
    "from tpv_jax.banks import bank\n"
    "ENTRIES = [@one/bank.Entry()]\n"
    "from tpv_jax.training import task_data\n"
    "bank.Entry.data = @task_data.TaskData()\n"
    "task_data.TaskData.task = %TASK\n"
    "task_data.TaskData.vocabulary = %VOCABULARY\n"
    "task_data.TaskData.lengths = %LENGTHS\n"
    "task_data.TaskData.batch_size = %BATCH_SIZE\n"
    "TASK = @suite.task()\n"
    "suite.task.name = 'nli'\n"
    "one/bank.Entry.run_dir = 'runs/one'\n"
  )
  assert checked(bank.train_bank, [f"{RUNS}bank_embedded.gin", mine]) == []


@pytest.mark.parametrize(
  ("entry", "binding", "message"),
  [
    (training.train, "LEARNING_RATE='0.3'", "'0.3'; it must be a number of at least 0"),
    (training.train, "LEARNING_RATE=-0.3", "-0.3; it must be a number of at least 0"),
    (training.train, "LEARNING_RATE=1e999", "inf; it must be a finite number"),
    (training.train, "WEIGHT_DECAY=-1.0", "-1.0; it must be a number of at least 0"),
    (training.train, "WARMUP_STEPS=None", "None; it must be a whole number"),
    (training.train, "TRAIN_STEPS=True", "True; it must be a whole number"),
    (training.train, "BEST_METRIC='los'", "'los'; it must be .* Did you mean 'loss'"),
    (training.train, "OVERWRITE='False'", "'False'; it must be True or False"),
    (training.train, "RANDOM_SEED=9223372036854775808", "at most 4,294,967,295"),
    (training.train, "RUN_DIR='a\\x00b'", "a string without the character NUL"),
    (training.train, "RUN_DIR=''", "a string with something in it"),
    (training.train, "INITIAL_PROMPT=True", "True; it must be a function or None"),
    (training.train, "VOCABULARY='x'", "'x'; it must be a Vocabulary"),
    (training.train, "MODEL=@model.SoftPromptModel", r"itself; it must.*Write \(\) at"),
    (training.train, "TRAINABLE=5", "5; it must be a string"),
    (training.train, "GROUP_RATES={'prompt': -1}", r"\['prompt'\] is -1; it must be"),
    (training.train, "LENGTHS={'inputs': 24.5, 'targets': 2}", r"\['inputs'\] is 24.5"),
    (training.train, "LENGTHS={'inputs': 24, 'targets': 2, 'x': 1}", "with the keys"),
    (training.train, "LENGTHS={'inputs': 10**8, 'targets': 2}", "Cannot read"),
    (
      training.train,
      "LENGTHS={'inputs': 100000000, 'targets': 2}",
      "at most 1,048,576",
    ),
    (training.train, "model.SoftPromptModel.label_smoothing=2.0", "2.0; .*below 1"),
    (
      training.train,
      "model.SoftPromptModel.z_loss=-1.0",
      "-1.0; it must be a number of",
    ),
    (
      training.train,
      "network.Transformer.dropout_rate=1.5",
      "1.5; it must be .*below 1",
    ),
    (training.train, "network.Transformer.dropout_rate=-0.5", "of at least 0"),
    (training.train, "initial.sampled_vocabulary.first=-5", "-5; it must be a whole"),
    (evaluation.evaluate, "EVAL_SPLITS='test'", "'test'; it must be a list"),
    (evaluation.evaluate, "WHICH='bets'", "'bets'; it must be .*Did you mean 'best'"),
    (evaluation.evaluate, "TASK_NAMES='topic'", "'topic'; it must be a list"),
  ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_the_name_that_was_set(
  checked, entry, binding, message
):
  run = "embedded" if entry is training.train else "eval_embedded"
  given = (*TASK, binding) if entry is training.train else (binding,)
  with pytest.raises(UserError, match=message) as error:
    checked(entry, [f"{RUNS}{run}.gin"], *given)
  assert binding.split("=")[0] in str(error.value)


def test_the_name_is_that_of_the_macro_in_which_the_value_stands(checked):
  mine = "MY_RATE = 'much'\nLEARNING_RATE = %MY_RATE\n"
  with pytest.raises(UserError, match=r"^MY_RATE \(.*mine1.gin:1\) is 'much'"):
    checked(training.train, [f"{RUNS}embedded.gin", mine], *TASK)


def _configurables():
  """Yields what the gin files bind, those of T5X aside, as (name, function)."""
  names = set()
  for path in (pathlib.Path(__file__).parents[2] / "gin_configs").rglob("*.gin"):
    text = path.read_text()
    imports = re.findall(r"^from (tpv_jax[\w.]*) import (\w+)$", text, re.MULTILINE)
    for package, module in imports:
      for name in re.findall(
        rf"(?:^|@|/){module}\.(\w+)(?=[.:(\s])", text, re.MULTILINE
      ):
        if ".t5x" not in package and name != "gin":
          names.add((f"{package}.{module}", name))
  for module, name in sorted(names):
    yield f"{module}.{name}", getattr(importlib.import_module(module), name)


WRONG = {
  "a whole number": ["1", True, 1.5, float("nan"), [1]],
  "a number": ["1", True, float("nan"), float("inf"), [1.0]],
  "True or False": ["False", 0, 1],
  "a string": [3, True, ["a"], b"a"],
  "a list": ["ab", 3, True],
  "a mapping": ["ab", 3, [1]],
}


@pytest.mark.parametrize(
  ("name", "function"),
  [pytest.param(*one, id=one[0].removeprefix("tpv_jax.")) for one in _configurables()],
)
def test_every_parameter_that_gin_files_bind_refuses_other_kinds(name, function):
  known = checks.annotations(function)
  unknown = set(inspect.signature(function).parameters) - set(known)
  assert unknown <= {"parent", "name"}, f"{name}: {unknown} have no annotation"
  for parameter, annotation in known.items():
    if parameter in ("parent", "name") and hasattr(function, "apply"):
      continue  # Flax's own fields.
    wanted = checks.describe(annotation)
    kinds = [kind for kind in WRONG if kind in wanted]
    if len(kinds) == 1:
      for value in WRONG[kinds[0]]:
        assert checks.misfit(value, annotation, parameter), (name, parameter, value)
      if "None" not in wanted:
        assert checks.misfit(None, annotation, parameter), (name, parameter)


def test_macros_in_a_librarys_own_files_that_nothing_reads_are_none_of_the_users(
  tmp_path, monkeypatch
):
  (tmp_path / "a_library" / "configs").mkdir(parents=True)
  (tmp_path / "a_library" / "__init__.py").write_text("")
  (tmp_path / "a_library" / "configs" / "own.gin").write_text("DROPOUT = 0.1\n")
  monkeypatch.syspath_prepend(tmp_path)
  files = ["a_library/configs/own.gin", f"{RUNS}embedded.gin"]
  refusals.check(training.train, gin_files.parse(files, TASK, libraries=["a_library"]))
  with pytest.raises(UserError, match=r"DROPOUT .*is read by nothing"):
    refusals.check(training.train, gin_files.parse(files, TASK))
  found = gin_files.parse([*files], [*TASK, "DROPOUT=0.2"], libraries=["a_library"])
  with pytest.raises(UserError, match=r"DROPOUT \(--gin\) is read by nothing"):
    refusals.check(training.train, found)


def test_what_a_module_decorates_for_gin_reads_its_settings_whoever_calls_it(
  checked, tmp_path, monkeypatch
):
  name = f"decorating_{tmp_path.name}"
  text = "import gin\n@gin.configurable\ndef pad(rows=1):\n  return rows\n"
  (tmp_path / f"{name}.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  mine = f"import {name}\n{name}.pad.rows = 3\n"
  assert checked(training.train, [f"{RUNS}embedded.gin", mine], *TASK) == []


def test_a_name_that_means_something_elsewhere_is_refused_with_what_to_write():
  instead = {"Trainer.steps": "Write STEPS.", "MODEL_DIR": "Write RUN_DIR."}
  found = gin_files.parse([f"{RUNS}embedded.gin"], [*TASK, "MODEL_DIR='m'"])
  with pytest.raises(UserError, match=r"that this command runs\. Write RUN_DIR\.$"):
    refusals.check(training.train, found, instead=instead)


def test_the_parameters_of_other_packages_are_held_to_what_they_may_be(
  tmp_path, monkeypatch
):
  name = f"foreign_{tmp_path.name}"
  (tmp_path / f"{name}.py").write_text("def pad(rows):\n  return rows\n")
  (tmp_path / "mine.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    f"import {name}\nROWS = 1\nBATCH_SIZE = @{name}.pad()\n{name}.pad.rows = %ROWS\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  files = [f"{RUNS}embedded.gin", str(tmp_path / "mine.gin")]
  others = {f"{name}.pad": {"rows": checks.Size}}
  refusals.check(training.train, gin_files.parse(files, TASK), others=others)
  found = gin_files.parse(files, [*TASK, "ROWS=-1"])
  with pytest.raises(UserError, match=r"ROWS is -1; it must be a whole number of at"):
    refusals.check(training.train, found, others=others)
