"""Finds what the code and the documents cite of documents, and says what is not there.

A citation names a document by its path from the repository's root, alone or with what is
meant of it: equations, `docs/methods.md, (3.4) and (3.5)`, or a heading without its number,
`docs/methods.md, "Prompt fusion"`. In a file that cites docs/methods.md a number alone, as
in (3.4), is an equation of it. Markdown also has relative links, and names files of code.
"""

import ast
import collections
import functools
import io
import itertools
import pathlib
import re
import tokenize
from collections.abc import Iterator

import markdown_it

REPOSITORY = pathlib.Path(__file__).parents[1]

SPECIFICATION = "docs/methods.md"

FOLDERS = (
  "docs",
  "tpv_jax",
  "gin_configs",
  "benchmarks",
  "examples",
  "launch",
  "tests",
)

CODE = (".py", ".gin", ".sh", ".toml", ".cff", ".txt", ".yml", ".yaml", ".ipynb")

WRITTEN = ("report.md",)
"""What studies write into their own folders."""

DOCUMENT = re.compile(r"(?<![\w./-])((?:[\w.-]+/)*[\w-]+\.md)\b(?!\.)")
SOURCE = re.compile(r"(?:\w[\w.-]*/)+\w+(?:\.(?:py|gin|sh)|/)")
"""A file of code, or a folder in a folder, in one of `ROOTS`."""

ROOTS = (".", "tpv_jax", "gin_configs")

TO_BE_MADE = "extending"
"""The folder of documents that name files which their readers make."""

EQUATION = re.compile(r"\(\d+\.\d+\)")
OF_IT = re.compile(
  r',? (?:"([^"]+)"|(\(\d+\.\d+\)(?:(?:, | and | to )\(\d+\.\d+\))*)'
  r"|((?:the )?(?:\w+ of )?(?:section|point|chapter|\d)\b[^.;)]*))"
)


class Document:
  """What of a document can be cited.

  Attributes:
    headings: without their numbers.
    anchors: as GitHub makes them of the headings.
    equations: their numbers, as in '(3.4)', in order.
  """

  def __init__(self, text: str):
    """Reads a document."""
    self.headings: list[str] = []
    self.anchors: list[str] = []
    self.equations: list[str] = []
    seen: collections.Counter[str] = collections.Counter()
    tokens = _parsed(text)
    for token, inner in itertools.pairwise(tokens):
      if token.type == "heading_open":
        title = inner.content.replace("`", "")
        self.headings.append(re.sub(r"^\d+\. ", "", title))
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        self.anchors.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
      elif token.type == "fence":
        self.equations += re.findall(r" (\(\d+\.\d+\))$", token.content, re.M)


@functools.cache
def document(path: str) -> Document | None:
  """Returns the document of that path, None if there is none."""
  file = REPOSITORY / path
  return Document(file.read_text()) if file.is_file() else None


def problems(text: str, prose: bool = True, specified: bool = False) -> list[str]:
  """Returns what a text cites that is not there, in words.

  Args:
    text: of a docstring, a comment, a message or a document, in one line.
    prose: whether a name without a folder is a citation; in code it may be any file.
    specified: whether a number alone is an equation of the specification.
  """
  found = []
  covered: list[range] = []
  for match in DOCUMENT.finditer(text):
    path = match[1]
    folder = path.split("/")[0] if "/" in path else ""
    if folder and folder not in FOLDERS:
      continue
    if not folder and (path in WRITTEN or not prose):
      continue
    cited = document(path)
    if cited is None:
      place = "; cite it from the root, as docs/NAME.md" if not folder else ""
      found.append(f"there is no document '{path}'{place}")
      continue
    of_it = OF_IT.match(text, match.end())
    if of_it is None:
      continue
    found += _parts_not_there(path, cited, *of_it.groups())
    covered.append(range(*of_it.span()))
  if specified:
    known = document(SPECIFICATION)
    for match in EQUATION.finditer(text):
      if any(match.start() in part for part in covered):
        continue
      if known is None or match[0] not in known.equations:
        found.append(f"'{SPECIFICATION}' has no equation {match[0]}")
  return found


def _parts_not_there(
  path: str, cited: Document, heading: str, equations: str, vague: str
) -> list[str]:
  found = []
  if heading and heading not in cited.headings:
    found.append(f"'{path}' has no heading '{heading}'")
  for number in EQUATION.findall(equations or ""):
    if number not in cited.equations:
      found.append(f"'{path}' has no equation {number}")
  if vague:
    found.append(f"'{path}, {vague}' is neither an equation nor a heading")
  return found


def of_markdown(text: str, folder: pathlib.Path, specified: bool = False) -> list[str]:
  """Returns the `problems` of a document, and the links and code that are not there.

  Args:
    text: of the document.
    folder: in which it lies.
    specified: whether it is the specification.
  """
  prose: list[str] = []
  found: list[str] = []
  for token in _parsed(text):
    within = False
    for child in token.children or ():
      within = {"link_open": True, "link_close": False}.get(child.type, within)
      target = str(child.attrs.get("href") or child.attrs.get("src") or "")
      if target and not re.match(r"[a-z]+:", target):
        found += _of_link(target, folder, text)
      if child.type == "code_inline" and SOURCE.fullmatch(child.content):
        found += _of_source(child.content, folder)
      if not within:
        prose.append(child.content or " ")
    prose.append(" ")
  return problems(_one_line("".join(prose)), specified=specified) + found


def _of_source(name: str, folder: pathlib.Path) -> list[str]:
  if folder.name == TO_BE_MADE or any(
    (REPOSITORY / root / name).exists() for root in ROOTS
  ):
    return []
  return [f"there is no '{name}'"]


def _of_link(target: str, folder: pathlib.Path, text: str) -> list[str]:
  path, _, anchor = target.partition("#")
  file = folder / path
  if path and not file.exists():
    return [f"the link '{target}' leads nowhere"]
  if anchor and anchor not in Document(file.read_text() if path else text).anchors:
    return [f"the link '{target}' leads to no heading"]
  return []


def of_file(path: pathlib.Path) -> list[str]:
  """Returns all that a file cites in vain."""
  content = path.read_text()
  if path.suffix == ".md":
    return of_markdown(content, path.parent, path == REPOSITORY / SPECIFICATION)
  if ".md" not in content:
    return []
  if path.suffix != ".py":
    text = _one_line(re.sub(r"^#+", "", content, flags=re.M))
    return problems(text, prose=False)
  found = []
  specified = SPECIFICATION in content
  for text, prose in texts(content):
    found += problems(_one_line(text), prose, specified and prose)
  return found


def texts(content: str) -> Iterator[tuple[str, bool]]:
  """Yields the texts of a module, and whether each is a docstring or a comment."""
  tree = ast.parse(content)
  documented = {
    id(node.value)
    for node in ast.walk(tree)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value, id(node) in documented
  comment: list[str] = []
  for token in tokenize.generate_tokens(io.StringIO(content).readline):
    if token.type == tokenize.COMMENT:
      comment.append(token.string.lstrip("#"))
    elif token.type not in (tokenize.NL, tokenize.NEWLINE) and comment:
      yield " ".join(comment), True
      comment = []
  if comment:
    yield " ".join(comment), True


def files() -> list[pathlib.Path]:
  """Returns the files that may cite, those of this checker left out."""
  inside = [path for name in FOLDERS for path in (REPOSITORY / name).rglob("*")]
  found = [*REPOSITORY.iterdir(), *(REPOSITORY / ".ci").glob("*"), *inside]
  return sorted(
    path
    for path in found
    if (path.suffix in (*CODE, ".md") or path.name in ("Makefile", "run"))
    and path.is_file()
    and "citations" not in path.name
  )


def _parsed(text: str) -> list:
  return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)


def _one_line(text: str) -> str:
  return " ".join(text.split())
