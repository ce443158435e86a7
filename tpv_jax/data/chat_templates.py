"""Chat templates: how a conversation stands as text, by the template of a tokenizer's files.

The task's source is the user's turn. The target is the assistant's turn, and what the
template writes around it. Templates are programs that need not be trusted. They run in
Jinja's sandbox, first in a process of their own with limits; nothing in them depends on the
day or on chance, since the parameters that are trained depend on every word. Needs the
extra 'llm'.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tpv_jax.core.errors import UserError, near_misses
from tpv_jax.core.files import PathLike, cache_folder, write_bytes

DAY = datetime.datetime(2024, 7, 26)
"""What templates that write today's date are given: the date that LLaMA 3.1's has (ours)."""

MOST_LETTERS = 1 << 20
"""Most letters of a template; long ones, with tools, have 20,000."""

MOST_SECONDS, MOST_MEMORY = 10.0, 1 << 30
"""Limits of a template's trial; a template takes a millisecond."""

_USER, _ANSWER = "\ue000user\ue001", "\ue000answer\ue001"
"""They stand for the texts of both turns, to find where a template puts them."""

Setting = Any
"""Of a run: None or False for no template, True for the template as it is, or
`{'system': text}` for the template with this system text."""


@dataclasses.dataclass(frozen=True)
class Turn:
  """A text as a template puts it: what stands before it, the text, what stands behind it.

  Attributes:
    start: where the text begins in the one that was given; templates strip white space.
  """

  before: str
  text: str
  after: str
  start: int = 0


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A template with its system text.

  Attributes:
    template: in Jinja's language.
    words: the special tokens by their role ('bos_token'), which templates write.
    system: the system text; None leaves it to the template, which may have its own.
    where: the file, for messages.
  """

  template: str
  words: Mapping[str, str]
  system: str | None
  where: str

  def __post_init__(self) -> None:
    """Tries the template, in a process of its own if it is not known.

    Raises:
      UserError: it fails, takes too long, doesn't write both turns, or its conversation
        does not begin as the text behind which the model is to answer.
    """
    if len(self.template) > MOST_LETTERS:
      raise self._error(f"has {len(self.template)} letters")
    self._try_out()
    _ = self.frames

  @functools.cached_property
  def digest(self) -> str:
    """64 hex digits that name the template and the system text (SHA-256)."""
    return hashlib.sha256(json.dumps([self.template, self.system]).encode()).hexdigest()

  def source(self, text: str) -> Turn:
    """Returns the user's turn, up to where the assistant's text begins."""
    written = self._written(text)
    if not text.strip():  # LLaMA 2's template also strips its own words then.
      return Turn(written, "", "")
    return self._placed(self.frames[0], text, written)

  def target(self, text: str) -> Turn:
    """Returns the assistant's turn, behind the text of `source`."""
    return self._placed(self.frames[1], text, self._answer(text))

  @functools.cached_property
  def frames(self) -> tuple[Turn, Turn]:
    """What the template writes around the user's text and around the assistant's."""
    return (
      self._around(_USER, self._before_answer, "user's"),
      self._around(_ANSWER, self._answer(_ANSWER), "assistant's"),
    )

  def _written(self, user: str, answer: str | None = None) -> str:
    """Returns the conversation, or what stands before the answer if that is None."""
    messages = [{"role": "user", "content": user}]
    if self.system is not None:
      messages.insert(0, {"role": "system", "content": self.system})
    if answer is not None:
      messages.append({"role": "assistant", "content": answer})
    template = self._compiled
    try:
      return template.render(
        **self.words,
        messages=messages,
        add_generation_prompt=answer is None,
        tools=None,
        documents=None,
      )
    except Exception as error:  # Templates are programs: any of Python's errors.
      raise self._error(f"fails ({_said(error)})") from error

  def _answer(self, text: str) -> str:
    """Returns what the conversation writes behind the source."""
    before, whole = self._before_answer, self._written(_USER, text)
    if not whole.startswith(before):
      at = next(i for i in range(len(before)) if whole[i : i + 1] != before[i])
      raise self._error(
        f"writes a conversation that does not begin as the text that it lets the model "
        f"answer: '{whole[at : at + 40]}' instead of '{before[at : at + 40]}'"
      )
    return whole.removeprefix(before)

  @functools.cached_property
  def _before_answer(self) -> str:
    return self._written(_USER)

  def _around(self, mark: str, written: str, whose: str) -> Turn:
    if (count := written.count(mark)) != 1:
      raise self._error(f"writes the {whose} text {count} times instead of once")
    before, _, after = written.partition(mark)
    return Turn(before, mark, after)

  def _placed(self, frame: Turn, text: str, written: str) -> Turn:
    before, after = frame.before, frame.after
    found = written[len(before) : len(written) - len(after)]
    start = text.find(found)
    if start < 0 or written != f"{before}{found}{after}":
      raise self._error(f"changes a text beyond white space at its ends: '{text:.60}'")
    return Turn(before, found, after, start)

  @functools.cached_property
  def _compiled(self) -> Any:
    try:
      return _environment().from_string(self.template)
    except ImportError as error:
      raise UserError(
        f"The chat template of '{self.where}' needs the package 'jinja2', 3.1.6 or newer "
        f"({error}). Install it (pip install 'jinja2>=3.1.6'), or train without it: CHAT = "
        "None."
      ) from error
    except Exception as error:
      raise self._error(f"cannot be read ({_said(error)})") from error

  def _error(self, what: str) -> UserError:
    return UserError(
      f"The chat template of '{self.where}' {what}. Give another template in the file, "
      "or train without it: CHAT = None."
    )

  def _try_out(self) -> None:
    """Raises `UserError` if a process with limits does not survive the template."""
    content = json.dumps([self.template, dict(self.words), self.system])
    passed = cache_folder() / f"{hashlib.sha256(content.encode()).hexdigest()}.chat"
    if passed.is_file():
      return
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {__name__} as it; "
    try:
      done = subprocess.run(
        [sys.executable, "-c", f"{code}it.trial(sys.stdin.read())", _root()],
        input=content.encode(),
        capture_output=True,
        timeout=6 * MOST_SECONDS,
      )
      failed = done.returncode not in (0, _REFUSED)
    except subprocess.TimeoutExpired:
      failed = True
    if failed:
      raise self._error(
        f"takes more than {MOST_SECONDS:g} s or {MOST_MEMORY >> 20} MiB for one "
        "conversation"
      )
    try:
      passed.parent.mkdir(parents=True, exist_ok=True)
      write_bytes(passed, b"")
    except OSError:
      pass  # A cache that cannot be written only costs time.


def chosen(
  setting: Setting, template: str | None, words: Mapping[str, str], where: PathLike
) -> ChatTemplate | None:
  """Returns the template that a run's setting asks for, or None.

  Args:
    setting: see `Setting`.
    template: of the tokenizer's files, or None if they have none.
    words: see `ChatTemplate`.
    where: the file or folder, for messages.

  Raises:
    UserError: the setting is something else, there is no template, or it fails.
  """
  if setting is None or setting is False:
    return None
  stated = {} if setting is True else setting
  if not isinstance(stated, Mapping):
    raise UserError(
      f"CHAT is {setting!r:.60}; it must be None, True or {{'system': 'a text'}}."
    )
  for name in stated:
    if name != "system":
      raise UserError(
        f"CHAT has no setting '{name}'.{near_misses(str(name), ['system'])} There is "
        "only 'system', the system text."
      )
  system = stated.get("system")
  if not isinstance(system, str | None):
    raise UserError(f"The system text in CHAT is {system!r:.60}; it must be a text.")
  if template is None:
    raise UserError(
      f"'{os.fspath(where)}' has no chat template, so CHAT cannot be used. Set CHAT = "
      "None, or give the files of a model that was trained for conversations."
    )
  return ChatTemplate(template, words, system, os.fspath(where))


_REFUSED = 3


def trial(content: str) -> None:
  """Writes a conversation by a template under limits, and ends the process."""
  import resource

  template, words, system = json.loads(content)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CPU, (int(MOST_SECONDS),) * 2)
  resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY,) * 2)
  one = object.__new__(ChatTemplate)  # Without its own trial.
  one.__dict__.update(template=template, words=words, system=system, where="")
  try:
    for text in (_USER, "", " text\n" * 1000):
      one._written(text)
      one._written(text, text)
  except MemoryError:
    sys.exit(1)
  except UserError as error:
    sys.exit(1 if isinstance(error.__cause__, MemoryError) else _REFUSED)


def _root() -> str:
  return str(pathlib.Path(__file__).parents[2])


def _said(error: Exception) -> str:
  """Returns an error of a template in one line."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@functools.cache
def _environment() -> Any:
  """Returns what templates are run in; they see what `transformers` gives them (5.24).

  The date is fixed, and what draws by chance is missing.
  """
  import importlib.metadata

  import jinja2
  import jinja2.ext
  import jinja2.sandbox

  version = importlib.metadata.version("jinja2")
  if tuple(map(int, version.split(".")[:3])) < (3, 1, 6):
    # A template of older versions can leave the sandbox.
    raise ImportError(f"version {version} is installed")

  class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words, writes what is inside."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

    def parse(self, parser: Any) -> Any:
      next(parser.stream)
      return parser.parse_statements(("name:endgeneration",), drop_needle=True)

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
  ) -> str:
    """Returns JSON as it is: Jinja's own filter writes it for HTML."""
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
      """Raises at once; Jinja's own would write nothing until the value is used."""
      raise jinja2.exceptions.SecurityError(
        f"the attribute {attribute!r} of a {type(obj).__name__!r} is not for templates"
      )

  made = Sandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
    optimized=False,  # Otherwise reading a template runs parts of it.
  )
  made.filters["tojson"] = tojson
  del made.filters["random"], made.globals["lipsum"]
  made.globals["raise_exception"] = raise_exception
  made.globals["strftime_now"] = DAY.strftime
  return made
