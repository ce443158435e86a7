"""Reads the commands and snippets of documents, runs them as printed, compares outputs.

In Markdown every fenced block is run, in the order of the document: untagged ones by the
shell, `python` ones by Python. A block's comment, which no reader sees, can say else:

  <!-- run: file my_task.gin -->   the block is this file, for the commands after it
  <!-- run: slow -->               by `make test-all` only
  <!-- run: t5x -->                real T5X is needed: run by `make t5x-check`, else parsed
  <!-- run: gpu -->                an accelerator is needed: here only parsed
  <!-- run: outside -->            the network or a machine is needed: only parsed

A block tagged `text` is no command. In a block with `$`, the lines after a command are
what it prints; `...` among them stands for any lines. Commands within a sentence are
parsed: their words and flags must exist.
"""

import ast
import dataclasses
import itertools
import os
import pathlib
import re
import shutil
import subprocess

import markdown_it

T5X = re.compile(r"-m (tpv_jax\.)?t5x\.")
"""In a command that needs real T5X."""

MARKS = ("run", "slow", "t5x", "gpu", "outside", "file", "sentence")

COMMAND = re.compile(
  r"(python3? (-m (tpv_jax|t5x)|\w+/)|tpv [a-z]|make [a-z]|pip install|launch/)\S*"
)
"""How a command within a sentence begins."""


@dataclasses.dataclass(frozen=True)
class Step:
  """One thing to run.

  Attributes:
    where: file and line.
    language: 'shell', 'python', or 'gin' for the content of a file.
    text: as printed.
    shown: the output that the document shows; None if it shows none.
    mark: one of `MARKS`; 'file NAME' names the file.
    anew: whether what its `-o` names is removed before: an example among others.
  """

  where: str
  language: str
  text: str
  shown: str | None = None
  mark: str = "run"
  anew: bool = False

  @property
  def outputs(self) -> list[str]:
    """What a command says that it writes, but for the folder of all runs."""
    options = (
      r""" (?:-o|>) (\S+)|--gin\.(?:(?:RUN|MODEL|OUTPUT)_DIR|OUTPUT)=['"]*([^\s'"]+)"""
    )
    found = ("".join(names) for names in re.findall(options, self.text))
    return [name for name in found if name != "runs"]

  def __str__(self) -> str:
    return f"{self.where} [{self.mark}]\n{self.text}"


def markdown(path: pathlib.Path) -> list[Step]:
  """Returns the steps of a Markdown file, in order."""
  steps, mark = [], None
  for token in (
    markdown_it.MarkdownIt("commonmark").enable("table").parse(path.read_text())
  ):
    line = (token.map or [0])[0] + 1
    if token.type == "html_block" and "run:" in token.content:
      mark = re.fullmatch(r"<!-- run: (.*) -->\s*", token.content)[1]
      assert mark.split()[0] in MARKS, f"{path.name}:{line}: unknown mark {mark!r}"
    elif token.type == "fence":
      steps += _fence(f"{path.name}:{line}", token.info, token.content, mark or "run")
      mark = None
    elif token.type == "inline":
      for child in token.children:
        assert child.type != "html_inline", (
          f"{path.name}:{line}: a reader does not see {child.content}; write it as code"
        )
        if child.type == "code_inline" and COMMAND.match(child.content):
          steps.append(
            Step(f"{path.name}:{line}", "shell", child.content, None, "sentence")
          )
  assert mark is None, f"{path.name}: the mark {mark!r} has no block after it"
  return steps


def _fence(where, language, content, mark):
  assert language in ("", "python", "gin", "text"), f"{where}: what is {language!r}?"
  if language == "text":
    return []
  if language or not re.search(r"^\$ ", content, re.M):
    return [Step(where, language or "shell", content, None, mark)]
  file, line = where.rsplit(":", 1)
  steps = []
  for number, text in enumerate(content.splitlines(), int(line) + 1):
    if text.startswith("$ "):
      steps.append(Step(f"{file}:{number}", "shell", text[2:], None, mark))
    elif steps[-1].shown is None and steps[-1].text.endswith("\\"):
      steps[-1] = dataclasses.replace(steps[-1], text=f"{steps[-1].text}\n{text}")
    else:
      shown = "" if steps[-1].shown is None else steps[-1].shown + "\n"
      steps[-1] = dataclasses.replace(steps[-1], shown=shown + text)
  return steps


def header(path: pathlib.Path) -> list[Step]:
  """Returns the commands in the comment or docstring that opens a file."""
  if path.suffix == ".py":
    lines = (
      ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""
    ).splitlines()
  else:
    lines = comments(path)
  return indented(path.name, lines)


def comments(path: pathlib.Path) -> list[str]:
  """Returns the lines of the comment that opens a file, without '# '."""
  lines = path.read_text().splitlines()
  opening = itertools.takewhile(lambda line: line.startswith("#"), lines)
  return [line[2:] for line in opening if not line.startswith("#!")]


def indented(where: str, lines: list[str], start: int = 1) -> list[Step]:
  """Returns the commands among indented lines, of a file's header or a help text.

  '...' as a command's first word stands for the command before it. Words after three
  blanks explain the command.
  """
  steps, going_on = [], False
  for number, line in enumerate(lines, start):
    text = re.sub(r"(?<=\S)   +\S.*", "", line.strip())
    if going_on:
      steps[-1] = dataclasses.replace(steps[-1], text=f"{steps[-1].text}\n  {text}")
    elif line.startswith("  ") and re.match(
      r"(python3? -m |python \w+/|tpv |launch/\S+ (?!\[)|\.\.\. )", text
    ):
      if text.startswith("... "):
        text = f"{steps[-1].text} {text[4:]}"
      steps.append(Step(f"{where}:{number}", "shell", text, anew=True))
    else:
      assert not re.match(r"(\$|python|pip|make|bash|gcloud) ", text), (
        f"{where}:{number}: is this a command? {text}"
      )
      continue
    going_on = text.endswith("\\")
  return steps


def settings(path: pathlib.Path) -> list[str]:
  """Returns the settings in a gin file's header: bindings, and flags that bind."""
  found, open_, command = [], 0, False
  for line in comments(path):
    text = re.sub(r"(?<=\S)   +\S.*", "", line.strip())
    command, within = text.endswith("\\"), command
    if within:
      continue
    if open_:
      found[-1] += f"\n  {text}"
    elif re.match(r" +([\w./]+ = |--gin\.)", line):
      found.append(text)
    else:
      continue
    open_ = len(re.findall(r"[\[({]", found[-1])) - len(
      re.findall(r"[\])}]", found[-1])
    )
  return found


@dataclasses.dataclass
class Runner:
  """Runs steps in a scratch folder.

  Attributes:
    folder: a clone, with what stands in for models and data.
    commands: a folder with `python` and `tpv`.
    brief: whether trainings take a few steps only; numbers are then not compared.
    t5x: whether real T5X is there; without it its commands are parsed.
  """

  folder: pathlib.Path
  commands: pathlib.Path
  brief: bool
  t5x: bool = False
  names: dict = dataclasses.field(default_factory=dict)

  def failure(self, step: Step) -> str | None:
    """Runs one step; returns what is wrong if it fails or prints something else."""
    done = self.run(step)
    if done is None:
      return None
    printed = f"{step}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"
    only_parsed = self.only_parsed(step)
    fails = (step.shown or "").startswith("error: ") and not only_parsed
    if done.returncode != (2 if fails else 0):
      return printed
    real = done.stderr if fails else done.stdout
    if step.shown is None or only_parsed or self.equal(step.shown, real):
      return None
    return f"{printed}\nIt should print what is shown:\n{step.shown}"

  def only_parsed(self, step: Step) -> bool:
    """Returns whether what a step needs is not here, so that it is parsed, not run."""
    mark = step.mark.split()[0]
    of_t5x = mark == "t5x" or bool(T5X.search(step.text))
    elsewhere = bool(re.search(r"gs://\w|gcloud ", step.text))
    return (
      mark in ("gpu", "outside", "sentence") or elsewhere or (of_t5x and not self.t5x)
    )

  def run(self, step: Step) -> subprocess.CompletedProcess | None:
    """Runs or parses one step; returns how that ended, None if it is no command."""
    mark, *rest = step.mark.split()
    if mark == "file":
      (self.folder / rest[0]).write_text(step.text)
      return None
    only_parsed = self.only_parsed(step)
    text = step.text.replace("/models/", "models/")
    dry = r"test -x \1" if mark == "sentence" else r"\1 --dry-run"
    if only_parsed or not (self.t5x and "launch/local" in text):
      text = re.sub(r"(launch/\w+\.sh)", dry, text)
    for output in step.outputs if step.anew else ():
      path = self.folder / output
      shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if step.language == "gin":
      return None
    if step.language == "python":
      script = self.folder / ".snippets" / f"{step.where}.py"
      script.parent.mkdir(exist_ok=True)
      script.write_text(text)
      text = f"python '.snippets/{script.name}'"
    environment = {
      **os.environ,
      "PATH": f"{self.commands}:{os.environ['PATH']}",
      "COLUMNS": "200",
      "XDG_CACHE_HOME": str(self.folder / "cache"),
      "DOCUMENTS": "parse" if only_parsed else "brief" if self.brief else "run",
      "INCOMPLETE": "1" if mark == "sentence" else "",
    }
    if only_parsed:
      environment["PATH"] = f"{self.commands}/parse:{environment['PATH']}"
    return subprocess.run(
      ["bash", "-euo", "pipefail", "-c", text],
      cwd=self.folder,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300 if self.brief else 3600,
      stdin=subprocess.DEVNULL,
    )

  def equal(self, shown: str, real: str) -> bool:
    """Returns whether a real output is the shown one.

    Blanks and the lines of a table may differ in number; digests must be the same ones in
    the same places, whatever their values; other numbers may differ by 2 %, or in any
    way after trainings that were made brief. Versions are the reader's own.
    """
    return self._equal(_lines(shown), _lines(real))

  def _equal(self, shown: list[str], real: list[str]) -> bool:
    if shown[:1] == ["..."]:
      ends = range(len(real) + 1)
      return any(self._equal(shown[1:], real[end:]) for end in ends)
    if not shown or not real:
      return shown == real
    return self._line(shown[0], real[0]) and self._equal(shown[1:], real[1:])

  def _line(self, shown: str, real: str) -> bool:
    if shown.startswith("versions "):
      return real.startswith("versions ")
    parts = [re.split(f"({VALUE})", line) for line in (shown, real)]
    return len(parts[0]) == len(parts[1]) and all(
      self._close(one, other) if number % 2 else one == other
      for number, (one, other) in enumerate(zip(*parts, strict=True))
    )

  def _close(self, shown: str, real: str) -> bool:
    if re.fullmatch(DIGEST, shown):
      return self.names.setdefault(shown[:12], real[:12]) == real[:12]
    if self.brief:
      return True
    one, other = (float(text.replace(",", "").rstrip("%")) for text in (shown, real))
    return abs(one - other) <= 0.02 * max(abs(one), abs(other)) + 0.1


DIGEST = r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,64}\b"
NUMBER = r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?%?(?!\w)"
VALUE = f"{DIGEST}|{NUMBER}"


def _lines(text: str) -> list[str]:
  """Returns the lines with single blanks, and lines of a table with single strokes."""
  lines = (re.sub(r"([━─═]|\s)\1*", r"\1", line).strip() for line in text.splitlines())
  return [line for line in lines if line]
