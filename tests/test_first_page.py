"""README is short and leads to all pages; the citation is one. Links: test_citations.py."""

import pathlib
import re

import yaml

REPOSITORY = pathlib.Path(__file__).parents[1]
README = REPOSITORY / "README.md"
CITATION = REPOSITORY / "CITATION.cff"


def test_the_readme_is_at_most_ten_kibibytes_with_python_on_its_first_screens():
  text = README.read_bytes()
  assert len(text) <= 10_240
  assert text.index(b"```python\n") < 4_000


def test_the_picture_of_the_readme_is_small():
  (picture,) = re.findall(r"!\[.+?\]\((.+?)\)", README.read_text())
  assert (REPOSITORY / picture).stat().st_size < 60_000


def test_the_readme_leads_to_every_page_of_the_docs():
  linked = set(re.findall(r"\]\((.+?)\)", README.read_text()))
  pages = {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}
  assert pages - linked == {"docs/t5x-check.md"}  # from docs/t5x.md


def test_the_citation_has_the_fields_of_its_format():
  # https://github.com/citation-file-format: what 1.2.0 requires, and its spelling.
  cited = yaml.safe_load(CITATION.read_text())
  assert cited["cff-version"] == "1.2.0"
  assert cited["type"] == "software"
  assert cited["title"]
  assert cited["message"]
  assert cited["license"] == "Apache-2.0"
  assert cited["authors"] == [{"name": "The tpv_jax authors"}]
  assert len(cited["references"]) == 2
  for paper in cited["references"]:
    assert paper["type"] in ("article", "conference-paper")
    assert paper["title"]
    assert isinstance(paper["year"], int)
    for author in paper["authors"]:
      assert set(author) == {"family-names", "given-names"}


def test_the_citation_and_the_readme_name_the_same_papers():
  cited = yaml.safe_load(CITATION.read_text())
  readme = README.read_text()
  for paper in cited["references"]:
    assert f"[{paper['authors'][0]['family-names']} et al., {paper['year']}](" in readme
    assert f"]({paper['url']})" in readme
