"""What the code and the documents cite of documents is there (see citations.py)."""

import pathlib

import citations
import pytest


def test_every_citation_and_every_link_leads_somewhere():
  found = {
    str(path.relative_to(citations.REPOSITORY)): problems
    for path in citations.files()
    if (problems := citations.of_file(path))
  }
  assert not found


def test_the_equations_of_the_specification_are_numbered_in_order():
  specification = citations.document(citations.SPECIFICATION)
  numbers = [
    tuple(map(int, number.strip("()").split("."))) for number in specification.equations
  ]
  sections = sorted({section for section, _ in numbers})
  assert len(sections) > 5
  assert numbers == [
    (section, equation)
    for section in sections
    for equation in range(1, 1 + max(e for s, e in numbers if s == section))
  ]


def test_the_specification_is_cited_throughout_the_rooms_that_compute():
  citing = {
    path.relative_to(citations.REPOSITORY / "tpv_jax").parts[0]
    for path in citations.files()
    if path.is_relative_to(citations.REPOSITORY / "tpv_jax")
    and f"{citations.SPECIFICATION}, " in " ".join(path.read_text().split())
  }
  assert citing >= {
    *("prompts", "vectors", "core", "data", "backbones", "training", "banks"),
    *("studies", "model.py"),
  }


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("see docs/methods.md, (99.1)", "no equation (99.1)"),
    ("see docs/methods.md, (3.4) and (99.1).", "no equation (99.1)"),
    ("see docs/methods.md, (3.4) to (3.99)", "no equation (3.99)"),
    ('see docs/methods.md, "Confusion"', "no heading 'Confusion'"),
    ("docs/methods.md, section 3, says", "neither an equation nor a heading"),
    ("docs/methods.md, end of section 5", "neither an equation nor a heading"),
    ("see docs/nothing.md for more", "no document 'docs/nothing.md'"),
    ("(methods.md, section 4)", "no document 'methods.md'; cite it from the root"),
    ("what benchmarks/NOTHING.md says", "no document 'benchmarks/NOTHING.md'"),
  ],
)
def test_a_citation_of_what_is_not_there_is_found(text, problem):
  (found,) = citations.problems(text)
  assert problem in found


@pytest.mark.parametrize(
  "text",
  [
    "docs/methods.md, (3.4), (3.5) and (3.9)",
    'docs/methods.md, "Prompt fusion"; docs/methods.md, "EPT"',
    "see README.md, benchmarks/NOTES.md and docs/formats.md.",
    "Writes `report.md` and results.json",
    "runs/mine/report.md is of the user",
  ],
)
def test_what_is_there_is_no_problem(text):
  assert not citations.problems(text)


def test_a_number_alone_is_an_equation_where_the_specification_is_cited():
  assert not citations.problems("step (3.4)", specified=True)
  assert citations.problems("step (3.99)", specified=True)
  assert not citations.problems("version (3.99)")


def test_code_may_name_a_file_but_cites_documents_that_are_there():
  assert not citations.problems("formats.md", prose=False)
  assert citations.problems("see docs/nothing.md", prose=False)


@pytest.mark.parametrize(
  ("text", "problem"),
  [
    ("[a](nothing.md)", "leads nowhere"),
    ("![a](nothing.png)", "leads nowhere"),
    ("[a](formats.md#nothing)", "leads to no heading"),
    ("# One\n[a](#two)", "leads to no heading"),
    ("| a |\n| --- |\n| [b](nothing.md) |", "leads nowhere"),
    ("see [a](formats.md) and `nothing.md`", "no document 'nothing.md'"),
    ("as `prompts/nothing.py` says", "there is no 'prompts/nothing.py'"),
    ("of `data/nothing/`", "there is no 'data/nothing/'"),
  ],
)
def test_a_link_or_a_name_in_a_document_of_what_is_not_there_is_found(text, problem):
  (found,) = citations.of_markdown(text, citations.REPOSITORY / "docs")
  assert problem in found


def test_links_to_documents_headings_and_pages_are_no_problem():
  text = (
    "# Two `words`, and gs:// more\n[a](formats.md) [b](methods.md#letters) "
    "[c](#two-words-and-gs-more) [d](https://example.org/x#y)\n"
    "`prompts/equations.py`, `runs/train.gin`, `data/metrics/`, `mine.gin`, `./x.py`\n"
  )
  assert not citations.of_markdown(text, citations.REPOSITORY / "docs")


def test_docstrings_comments_and_messages_are_all_read(tmp_path):
  module = tmp_path / "module.py"
  module.write_text(
    '"""Of docs/one.md, (1.1)."""\n\n\ndef f(x):\n  # Of docs/two.md,\n'
    '  # "Heading".\n  raise ValueError(f"{x}: see " "docs/three.md")\n'
  )
  assert [text.split("'")[1] for text in citations.of_file(module)] == [
    *("docs/one.md", "docs/three.md", "docs/two.md")
  ]
  header = pathlib.Path(tmp_path / "run.gin")
  header.write_text("# A run.\n# docs/methods.md,\n# (99.1) says more.\nX = 1\n")
  assert citations.of_file(header) == ["'docs/methods.md' has no equation (99.1)"]
