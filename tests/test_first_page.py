"""README is short, what it links to is there, and the citation is one."""

import itertools
import pathlib
import re

import markdown_it
import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).parents[1]

PAGES = sorted(
  str(path.relative_to(REPOSITORY))
  for path in (
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").rglob("*.md"),
    REPOSITORY / "tpv_jax/embedded/MODEL_CARD.md",
    REPOSITORY / "benchmarks/NOTES.md",
  )
)


def test_the_readme_is_at_most_ten_kibibytes_with_python_on_its_first_screens():
  text = (REPOSITORY / "README.md").read_bytes()
  assert len(text) <= 10_240
  assert text.index(b"```python\n") < 4_000


def tokens(page):
  parsed = markdown_it.MarkdownIt("commonmark").enable("table").parse(page.read_text())
  return list(itertools.chain(parsed, *(one.children or () for one in parsed)))


def anchors(page):
  """Returns the anchors that GitHub gives the headings of a page."""
  own = tokens(page)
  titles = [
    "".join(child.content for child in own[number + 1].children)
    for number, token in enumerate(own)
    if token.type == "heading_open"
  ]
  return {
    re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles
  }


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_exist(name):
  page = REPOSITORY / name
  links = [
    token.attrs.get("href") or token.attrs.get("src")
    for token in tokens(page)
    if token.type in ("link_open", "image")
  ]
  for link in (link for link in links if not re.match(r"https?://", link)):
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    assert target.exists(), f"{name}: {link}"
    assert not anchor or anchor in anchors(target), f"{name}: {link}"


def test_the_pictures_of_the_readme_are_small():
  readme = REPOSITORY / "README.md"
  pictures = [token.attrs["src"] for token in tokens(readme) if token.type == "image"]
  assert len(pictures) == 1
  assert (REPOSITORY / pictures[0]).stat().st_size < 60_000


def test_the_readme_leads_to_every_page_of_the_docs():
  linked = set(re.findall(r"\]\((.+?)\)", (REPOSITORY / "README.md").read_text()))
  pages = {name for name in PAGES if re.fullmatch(r"docs/[^/]+\.md", name)}
  assert pages - linked == {"docs/t5x-check.md"}  # from docs/t5x.md


def test_the_citation_has_the_fields_of_its_format():
  # https://github.com/citation-file-format: what 1.2.0 requires, and its spelling.
  cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
  assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
  assert cited["title"] and cited["message"] and cited["license"] == "Apache-2.0"
  assert cited["authors"] == [{"name": "The tpv_jax authors"}]
  assert len(cited["references"]) == 2
  for paper in cited["references"]:
    assert paper["type"] in ("article", "conference-paper") and paper["title"]
    assert isinstance(paper["year"], int)
    for author in paper["authors"]:
      assert set(author) == {"family-names", "given-names"}


def test_the_citation_and_the_readme_name_the_same_papers():
  cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
  readme = (REPOSITORY / "README.md").read_text()
  for paper in cited["references"]:
    assert f"[{paper['authors'][0]['family-names']} et al., {paper['year']}](" in readme
    assert f"]({paper['url']})" in readme
