"""Errors: one line, the right exit code."""

import errno
import json
import subprocess
import sys

import pytest

from tpv_jax.core import errors


def raising(error):
  def body():
    raise error

  return body


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (errors.UserError("Bad\n  input."), "error: Bad input.\n"),
    (
      OSError(errno.ENOSPC, "No space left on device", "/full/x"),
      "error: No space left on device (/full/x). Nothing half-written was kept. Free "
      "some space or choose another folder, then run the same command again.\n",
    ),
    (
      FileNotFoundError(errno.ENOENT, "No such file", "gone.txt"),
      "error: Cannot open (gone.txt): No such file or directory.\n",
    ),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, error, line):
  assert errors.run_command(raising(error)) == 2
  assert capsys.readouterr().err == line


@pytest.mark.parametrize(
  ("error", "number"),
  [
    (ValueError("UNKNOWN: Failed to open: x [os_error_code='5']"), errno.EIO),
    (
      ValueError("RESOURCE_EXHAUSTED: Error opening [os_error_code='24']"),
      errno.EMFILE,
    ),
    (ValueError("OUT_OF_RANGE: Error writing [os_error_code='27']"), errno.EFBIG),
    (RuntimeError("writing failed: Disk quota exceeded"), errno.EDQUOT),
    (ExceptionGroup("several", [OSError(errno.ENOSPC, "full")]), errno.ENOSPC),
    (MemoryError("Unable to allocate 8.00 TiB for an array"), errno.ENOMEM),
    (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"), None),
  ],
)
def test_what_a_library_raises_is_told_by_its_cause_in_the_system(error, number):
  try:
    raise KeyError("what came of it") from error
  except KeyError as wrapped:
    found = errors.system_error(wrapped, "/run")
  assert (found and found.errno) == number
  assert found is None or found.filename == "/run"


def test_our_own_mistakes_keep_their_trace():
  with pytest.raises(ZeroDivisionError):
    errors.run_command(raising(ZeroDivisionError()))


def test_an_interrupt_says_what_it_left_and_exits_130(capsys):
  assert errors.run_command(raising(KeyboardInterrupt("stopped after step 3"))) == 130
  assert capsys.readouterr().err == "interrupted: stopped after step 3\n"


def test_near_misses_are_only_the_near_ones():
  known = ["TRAIN_STEPS", "EVAL_PERIOD"]
  assert errors.near_misses("TRAIN_STEP", known) == " Did you mean 'TRAIN_STEPS'?"
  assert errors.near_misses("banana", known) == ""


def test_a_command_whose_output_nobody_reads_ends_without_a_word():
  code = (
    "import sys; from tpv_jax.core import errors\n"
    "sys.exit(errors.run_command(lambda: print('line\\n' * 10**6)))"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  ) as process:
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
  assert process.returncode == errors.EXIT_BROKEN_PIPE


HOSTILE = "x\x1b]0;owned\x07\x1b[2J\n\x9b31m\u202ecod\u2028y\x7fé\t"


def test_the_name_of_a_file_does_nothing_to_a_terminal(capsys):
  error = FileNotFoundError(errno.ENOENT, "No such file", "x\x1b[2J\n")
  assert errors.run_command(raising(error)) == 2
  assert capsys.readouterr().err == (
    "error: Cannot open (x\\x1b[2J\\n): No such file or directory.\n"
  )


def test_text_of_a_file_is_one_harmless_line():
  shown = r"x\x1b]0;owned\x07\x1b[2J\n\x9b31m\u202ecod\u2028y\x7fé\t"
  assert errors.printable(HOSTILE) == shown
  assert errors.printable("ordinary text, 日本 ▁x") == "ordinary text, 日本 ▁x"
  assert "\x1b" not in str(errors.UserError(f"'{HOSTILE}' is bad."))
  assert "\n" not in str(errors.UserError(f"'{HOSTILE}' is bad."))


def test_json_for_people_is_harmless_and_reads_back_equal():
  content = {HOSTILE: [HOSTILE, 1, "é"]}
  text = errors.to_json(content)
  assert json.loads(text) == content
  assert "é" in text
  assert not set(HOSTILE) & set(text) - set("\n x];0owned[2J31mcody" + "é")


def test_settings_are_renamed_whole():
  with (
    pytest.raises(errors.UserError, match=r"^no -r, --rank, RANKS$"),
    errors.renamed({"RANK": "--rank", "RANK = @rank()": "no -r"}),
  ):
    raise errors.UserError("RANK = @rank(), RANK, RANKS")


@pytest.mark.parametrize(
  ("spelling", "expected"),
  [
    ("--", ["--overwrite", "--which last", "--allow-mixed-origin"]),
    (
      "--gin.",
      [
        "--gin.OVERWRITE=True",
        "--gin.WHICH='\"last\"'",
        "--allow-mixed-origin to 'tpv sum'",  # No gin file has a macro for it.
      ],
    ),
  ],
)
def test_an_option_is_named_as_the_command_that_runs_spells_it(spelling, expected):
  told = []

  def body():
    told.append(errors.option("overwrite"))
    told.append(errors.option("which", "last"))
    told.append(errors.option("allow_mixed_origin", verb="sum"))

  assert errors.run_command(body, spelling=spelling) == 0
  assert told == expected
  assert errors.option("overwrite") == "overwrite=True"
