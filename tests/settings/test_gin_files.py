"""Gin files: whatever is wrong with one is a line that names it."""

import pathlib
import random
import re

import gin
import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.settings import gin_files

FOLDER = pathlib.Path(__file__).parents[2] / "gin_configs"


@pytest.fixture(autouse=True)
def clean_gin():
  yield
  gin.clear_config()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("TASK_NAME = [1,\n", "mine.gin:1: a bracket.* is not closed"),
    ("A = 1\nB = {'a': 1\n", "mine.gin:2: a bracket.* is not closed"),
    ("A = '''x\n", "mine.gin:1: "),
    # Python's tokenizer refuses an open text itself from 3.12 on.
    (
      "A = 'x\n",
      "mine.gin:1: (Unable to parse value|a .* mark or block is not closed)",
    ),
    ("A = $\n", "mine.gin:1: Unable to parse value"),
    ("A\n", "mine.gin:1: Couldn't parse statement"),
    ("A = 1\n  B = 2\n C = 3\n", "mine.gin:3: "),
    ("A = {[1]: 2}\n", "mine.gin:1: TypeError: unhashable"),
    (f"A = {'[' * 3000}\n", "mine.gin:1: "),
    ("include 'mine.gin'\n", "in a circle: mine.gin includes mine.gin"),
    ("include 'nothing.gin'\n", "mine.gin includes it: There is no gin file 'nothing"),
    ("include 'folder'\n", "mine.gin includes it: 'folder' is a folder"),
    ("import nothing_here\n", "mine.gin:1: there is no module 'nothing_here'. Install"),
    ("import broken\n", "mine.gin:1: NameError: name 'undefined' is not defined"),
    ("import leaving\n", "mine.gin:1: SystemExit: 3"),
    (
      "from tpv_jax.training import trainning\n",
      "no module 'tpv_jax.training.trainning'. Did you mean 'training'",
    ),
    (
      "from tpv_jax.runner import checkpoints\n",
      "'tpv_jax.runner.checkpoints'. Did you mean 'from tpv_jax.training import checkpoints'",
    ),
    (
      "from tpv_jax.prompts import initial\n",
      "'tpv_jax.prompts.initial'. Did you mean 'from tpv_jax.training import initial'",
    ),
    ("from __gin__ import dynamic\n", "mine.gin:1: Unrecognized __gin__ feature"),
    ("training.train.total_steps = 1\n", "mine.gin:2: .*'from tpv_jax.+ training'"),
    ("A = @training.train()\n", "mine.gin:2: 'training' is not imported"),
    ("evaluation.evalute.which = 'a'\n", "Did you mean 'evaluation.evaluate'"),
    ("evaluation.evaluate.wich = 'a'\n", "Did you mean 'which'"),
  ],
)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, monkeypatch, text, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  if "mine.gin:2" in message and "training" in text:
    text = f"from __gin__ import dynamic_registration\n{text}"
  if "evaluation" in text:
    text = (
      "from __gin__ import dynamic_registration\nfrom tpv_jax.evaluation import evaluation\n"
      + text
    )
  (tmp_path / "folder").mkdir()
  (tmp_path / "broken.py").write_text("undefined\n")
  (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
  (tmp_path / "mine.gin").write_text(text)
  with pytest.raises(UserError, match=message) as error:
    gin_files.parse(["mine.gin"])
  assert "\n" not in str(error.value)


def test_files_that_include_each_other_are_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.gin").write_text("include 'b.gin'\n")
  (tmp_path / "b.gin").write_text("include './a.gin'\n")
  with pytest.raises(UserError, match=r"a.gin includes b.gin includes ./a.gin"):
    gin_files.parse(["a.gin"])


def test_what_is_no_text_is_no_gin_file(tmp_path):
  path = tmp_path / "model.gin"
  path.write_bytes(b"A = 1\n\xff\xfe")
  with pytest.raises(UserError, match=r"model.gin' is not UTF-8 text \(byte 6\). Save"):
    gin_files.parse([str(path)])
  with pytest.raises(UserError, match=r"is a folder. Give a gin file that lies in it"):
    gin_files.parse([str(tmp_path)])
  path.write_bytes(b" " * (gin_files.MOST_BYTES + 1))
  with pytest.raises(UserError, match="has more than"):
    gin_files.parse([str(path)])


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("A = 1\n", encoding="utf-8-sig")
  gin_files.parse([str(path)])
  assert gin.query_parameter("%A") == 1


@pytest.mark.parametrize(
  ("binding", "message"),
  [
    ("A", "'--gin.A' is not a binding: write --gin.NAME=VALUE"),
    ("A=[1,", r"Cannot read the value of --gin.A=\[1,. \(a bracket.* is not closed"),
    ("A=0,1", r"A list needs brackets: '\[0,1\]'"),
    ("A=runs/x,1", "A string needs quotes: '\"runs/x,1\"'"),
    ("A=a&b=c #1", "A string needs quotes: '\"a&b=c #1\"'"),
    ("A=C:\\x", r"A string needs quotes: '\"C:\\\\x\"'"),
    ("A=it's", "A string needs quotes: '\"it'\"'\"'s\"'"),
    ("A=[runs/x&1]", "'runs' is no value: a string needs quotes"),
    ("A=runs/x", "A string needs quotes: '\"runs/x\"'"),
    ("A=1\nimport os", "Cannot read the value"),
    ("A B=1", "Cannot read the value"),
    ("import x=1", "--gin.import x"),
    ("a.b=1", "--gin.a.b: No configurable matching 'a.b'|matching 'a'"),
    ("A=@nothing()", "--gin.A: No configurable matching reference '@nothing"),
  ],
)
def test_a_broken_binding_is_one_line(binding, message):
  with pytest.raises(UserError, match=message):
    gin_files.parse([], [binding])


@pytest.mark.parametrize(
  "text",
  ["A = 'mine'\ninclude 'gin_configs/prompts/plain.gin'\n", "PROMPT_LENGTH = 3\n"],
)
def test_a_users_setting_wins_over_a_shipped_file_in_any_order(tmp_path, text):
  path = tmp_path / "mine.gin"
  path.write_text(f"PROMPT_LENGTH = 3\n{text}")
  shipped = "gin_configs/prompts/plain.gin"
  for files in ([str(path), shipped], [shipped, str(path)]):
    found = gin_files.parse(files, ["EMB_DIM=4"])
    assert gin.query_parameter("%PROMPT_LENGTH") == 3
    assert not found["PROMPT_LENGTH", *gin_files.MACRO].shipped


@pytest.mark.parametrize(
  ("value", "meant"),
  [
    ("runs/x", "runs/x"),
    ("hf:google/flan-t5-small@main", "hf:google/flan-t5-small@main"),
    ("very good", "very good"),
    ("3-fold", "3-fold"),
    ("[sentiment, topic]", ["sentiment", "topic"]),
    ("[runs/a,runs/b]", ["runs/a", "runs/b"]),
    ("[[a.npz, b.npz], runs/c]", [["a.npz", "b.npz"], "runs/c"]),
    ("'1'", "1"),
    ("1", 1),
    ("1e-3", 1e-3),
    ("None", None),
    ("[1, 2]", [1, 2]),
    ("{'a': 1}", {"a": 1}),
  ],
)
def test_a_binding_of_the_command_line_may_leave_out_quotes(value, meant):
  gin_files.parse([], [f"A={value}"], unquoted=True)
  assert gin.query_parameter("%A") == meant


@pytest.mark.parametrize(
  "value",
  ["'runs/x", "[1,", "{a: 1}", "@nothing()", "[a b, 'c]", "[[a], b", "[[a],, b]"],
)
def test_what_only_begins_like_a_value_is_refused(value):
  with pytest.raises(UserError, match=r"--gin\.A"):
    gin_files.parse([], [f"A={value}"], unquoted=True)


def test_what_files_and_bindings_bind_is_known_without_applying_it(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("include 'gin_configs/runs/train.gin'\nBACKBONE = 'a'\nX = 'b'\n")
  found = gin_files.bound([str(path)], ["X=c", "Y=["])
  assert (found["BACKBONE"], found["X"]) == ("a", "c")
  assert "training.train.model" in found
  assert "Y" not in found
  with pytest.raises(UserError, match=r"no gin file 'none\.gin'"):
    gin_files.bound(["none.gin"])


def test_a_setting_knows_its_place(tmp_path):
  path = tmp_path / "mine.gin"
  path.write_text("include 'gin_configs/prompts/none.gin'\n\nA = 1\n")
  found = gin_files.parse([str(path)], ["B=2"])
  places = {
    setting.name: (setting.place, setting.shipped) for setting in found.values()
  }
  assert places["A"] == (f"{path}:3", False)
  assert places["B"] == ("--gin", False)
  assert places["PROMPT"] == ("gin_configs/prompts/none.gin:4", True)


def test_a_copy_of_a_shipped_file_counts_as_shipped_until_it_is_changed(tmp_path):
  copy = tmp_path / "gin_configs/prompts/none.gin"
  copy.parent.mkdir(parents=True)
  text = (FOLDER / "prompts/none.gin").read_text()
  copy.write_text(text)
  assert all(found.shipped for found in gin_files.parse([str(copy)]).values())
  copy.write_text(text + "X = 1\n")
  assert not any(found.shipped for found in gin_files.parse([str(copy)]).values())


def test_any_text_is_read_or_refused_in_one_line(tmp_path):
  """Damaged shipped files: a line is lost, doubled, cut or overwritten."""
  draw = random.Random(0)
  texts = [path.read_text() for path in sorted(FOLDER.rglob("*.gin"))]
  texts = [text for text in texts if "t5x" not in text and "seqio" not in text]
  nasty = [
    "(",
    "]",
    "{",
    "'",
    '"""',
    "%",
    "@",
    "=",
    ":",
    "\\",
    "\t",
    "\0",
    "é",
    "\n  ",
    "#",
  ]
  nasty += [
    "1e999",
    "9" * 5000,
    "%gin.REQUIRED",
    "@gin.macro()",
    "include ''",
    "import ",
  ]
  path = tmp_path / "mine.gin"
  refused = {}
  for _ in range(150):
    text = draw.choice(texts)
    for _ in range(draw.randint(1, 3)):
      at = draw.randrange(len(text) + 1)
      until = min(len(text), at + draw.choice([0, 0, 1, 5, 40]))
      text = (
        text[:at] + draw.choice([*nasty, "", "", text[at:until] * 2]) + text[until:]
      )
    path.write_text(text)
    try:
      gin_files.parse([str(path)])
    except UserError as error:
      refused[text] = str(error)
  assert 30 < len(refused) < 145
  for text, message in refused.items():
    assert not re.search(r"[\n\0]", message), text
