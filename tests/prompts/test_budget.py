"""EPT's budget: the solver, the check, the table, the command and the gin files."""

import functools
import json
import pathlib
import re

import gin
import hypothesis
import pytest
from hypothesis import strategies

from tpv_jax import cli
from tpv_jax.core.errors import UserError
from tpv_jax.prompts import budget, ept, plain
from tpv_jax.settings import calling, gin_files

FOLDER = pathlib.Path(__file__).parents[2] / "gin_configs" / "prompts"

T5_BASE = {"tokens": 100, "features": 768, "source_length": 256}
SMALL_PARTS = {"fusion_width": 4, "spaces": 4, "bottleneck": 1}
DEPT_PAIRS = ((20, 60), (40, 45), (60, 30), (80, 15))
"""(S, R) of DePT's code for T5-base (docs/methods.md, "DePT")."""


def total_of(length, rank, features, source_length, fusion_width, spaces, bottleneck):
  """Returns the number of parameters, from the shapes in docs/methods.md, "Letters"."""
  fusion = 2 * features * fusion_width + 1 if fusion_width else 0
  subspaces = 2 * spaces * features * bottleneck + features * spaces + spaces
  return length * features + (source_length + features) * rank + fusion + subspaces


def test_the_ranks_of_t5_base_are_those_of_the_prototype():
  assert budget.rank(length=40, **T5_BASE, **SMALL_PARTS) == 29
  wide = {"fusion_width": 16, "spaces": 4, "bottleneck": 2}
  assert budget.rank(length=40, **T5_BASE, **wide) == 5


@pytest.mark.parametrize(("length", "rank"), DEPT_PAIRS)
def test_depts_own_pairs_use_the_budget_to_the_last_parameter(length, rank):
  sizes = {**T5_BASE, "length": length}
  assert budget.rank(**sizes) == rank
  count = budget.check(rank=rank, **sizes)
  assert count.total == count.budget == 76800
  assert count.parts == {
    "prompt": length * 768,
    "low_rank": 1024 * rank,
    "fusion": 0,
    "spaces": 0,
  }
  assert count.limit == "budget"


@hypothesis.settings(deadline=None)
@hypothesis.given(
  tokens=strategies.integers(1, 60),
  length=strategies.integers(1, 60),
  features=strategies.integers(1, 64),
  source_length=strategies.integers(1, 80),
  fusion_width=strategies.integers(0, 4),
  spaces=strategies.integers(0, 4),
  bottleneck=strategies.integers(1, 3),
)
def test_the_rank_is_the_largest_that_is_allowed(tokens, **sizes):
  numbers = {name: sizes[name] for name in sizes}
  allowed = [
    rank
    for rank in range(1, min(sizes["source_length"], sizes["features"]) + 1)
    if total_of(rank=rank, **numbers) <= tokens * sizes["features"]
  ]
  solve = functools.partial(budget.rank, tokens=tokens, **sizes)
  if not allowed:
    with pytest.raises(UserError, match="leaves no rank"):
      solve()
    return
  assert solve() == max(allowed) < tokens
  count = budget.check(tokens=tokens, rank=max(allowed), **sizes)
  assert count.total == total_of(rank=max(allowed), **numbers)
  assert count.limit is not None
  with pytest.raises(UserError):
    budget.check(tokens=tokens, rank=max(allowed) + 1, **sizes)


@pytest.mark.parametrize(
  ("sizes", "rank", "limit"),
  [
    ({"tokens": 10, "features": 768, "source_length": 40}, 8, "budget"),
    ({"tokens": 30, "features": 768, "source_length": 3}, 3, "source_length"),
    ({"tokens": 2000, "features": 3, "source_length": 900}, 3, "features"),
  ],
)
def test_what_limits_the_rank_is_said(sizes, rank, limit):
  sizes = sizes | {"length": 1}
  assert budget.rank(**sizes) == rank
  count = budget.check(rank=rank, **sizes)
  assert count.limit == limit
  assert ("not by the budget" in budget.table([count])) == (limit != "budget")


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (
      {"length": 80, "fusion_width": 16},
      r"100 x 768 = 76,800.*95,237 \(prompt 61,440, fusion 24,577, spaces 9,220\)"
      r".*256 \+ 768 = 1,024.*SHORT_LENGTH",
    ),
    ({"length": 100, "fusion_width": 0, "spaces": 0}, "set RANK and FUSION_WIDTH to 0"),
    ({"length": 0}, "length is 0"),
    ({"tokens": 0}, "tokens is 0"),
    ({"spaces": -1}, "spaces is -1"),
    ({"fusion_width": True}, "fusion_width is True"),
    ({"bottleneck": 0}, "bottleneck is 0"),
  ],
)
def test_sizes_that_cannot_be_are_refused(change, text):
  with pytest.raises(UserError, match=text):
    budget.rank(**({"length": 40} | T5_BASE | SMALL_PARTS | change))


@pytest.mark.parametrize(
  ("change", "text"),
  [
    ({"rank": 30}, r"S = 40 and R = 30 make 76,805 .*: 5 over the budget of 100 x 768"),
    ({"rank": 257}, "256 source positions x 768 features.*at most 256"),
    ({"rank": 0}, "Prompt fusion attends to the low-rank update"),
    ({"rank": -1}, "rank is -1"),
  ],
)
def test_a_set_that_is_over_the_budget_or_cannot_be_is_refused(change, text):
  with pytest.raises(UserError, match=text):
    budget.check(**({"length": 40} | T5_BASE | SMALL_PARTS | change))


def test_a_plain_prompt_is_within_its_own_budget():
  count = budget.check(length=100, rank=0, **T5_BASE)
  assert (count.total, count.limit) == (76800, "budget")


def tpv(capsys, *arguments):
  code = cli.main(["budget", *arguments])
  printed = capsys.readouterr()
  return code, printed.out, printed.err


def test_the_command_prints_one_row_for_each_length(capsys):
  # Sums by hand: 40 * 768; 29 * 1024; 2 * 768 * 4 + 1; 2 * 4 * 768 + 768 * 4 + 4.
  code, printed, _ = tpv(capsys, "--short-length", "40", "60")
  assert code == 0
  title, names, *rows = (line.split() for line in printed.splitlines())
  assert " ".join(title).startswith("budget 100 x 768 = 76,800 parameters")
  assert names == ["S", "R", "prompt", "low-rank", "fusion", "spaces", "total", "share"]
  assert rows == [
    ["40", "29", "30,720", "29,696", "6,145", "9,220", "75,781", "98.6%"],
    ["60", "14", "46,080", "14,336", "6,145", "9,220", "75,781", "98.6%"],
  ]


def test_the_command_prints_json(capsys):
  code, printed, _ = tpv(capsys, "--short-length", "40", "--json")
  assert code == 0
  content = json.loads(printed)
  assert content["source_length"] == 256
  (prompt,) = content["prompts"]
  assert (prompt["rank"], prompt["total"], prompt["budget"]) == (29, 75781, 76800)
  assert prompt["parts"]["low_rank"] == 29696
  assert prompt["share"] == pytest.approx(75781 / 76800)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    ("--width 0", "--width is 0; it must be a whole number of at least 1"),
    ("--tokens 0", "--tokens is 0; it"),
    ("--source-length 0", "--source-length is 0; it"),
    ("--bottleneck 0", "--bottleneck is 0; it"),
    ("--spaces -1", "--spaces is -1; it must be a whole number of at least 0"),
    ("--fusion-width -1", "--fusion-width is -1; it"),
    ("--short-length 20 0", "--short-length is 0; it"),
    ("--rank -1", "--rank is -1; it"),
    (
      "--tokens 10",
      "(--short-length), a narrower fusion, fewer spaces or a larger --tok",
    ),
    ("--tokens 40 --short-length 27", "set --rank and --fusion-width to 0."),
    ("--rank 0", "or set --fusion-width to 0."),
    ("--short-length 40 --rank 99", "have the largest rank found (no --rank)."),
  ],
)
def test_the_command_names_its_own_options(capsys, call, message):
  code, _, error = tpv(capsys, *call.split())
  assert code == 2
  assert message in error


def test_the_command_checks_a_given_rank(capsys):
  arguments = ("--fusion-width", "0", "--spaces", "0", "--short-length", "20", "--rank")
  code, printed, _ = tpv(capsys, *arguments, "60")
  assert code == 0
  assert printed.splitlines()[-1].endswith("100.0%")
  code, _, error = tpv(capsys, *arguments, "61")
  assert code == 2
  assert error.count("\n") == 1
  assert "1,024 over the budget" in error


def configured(file, *bindings, backbone="t5_1_0_base"):
  """Returns the prompt that a run with this prompt file would train."""
  gin_files.parse(
    [
      "gin_configs/runs/train.gin",
      "gin_configs/tasks/text_files.gin",
      f"gin_configs/backbones/{backbone}.gin",
      f"gin_configs/prompts/{file}",
    ],
    [
      *("BACKBONE='b'", "VOCABULARY_FILE='v'", "TASK_NAME='t'", "PATHS='p'"),
      *("TEMPLATE='{x}'", "TARGET='y'", "RUN_DIR='r'", *bindings),
    ],
  )
  prompt = gin.query_parameter("%PROMPT")
  return prompt if prompt is None else prompt.scoped_configurable_fn()


SIZES = (
  *("length", "features", "source_length", "rank"),
  *("fusion_width", "spaces", "bottleneck"),
)

BACKBONES = {
  "small": ("t5_1_0_small", 512),
  "large": ("t5_1_1_large", 1024),
  "base": ("t5_1_0_base", 768),
}


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.gin")))
def test_a_gin_file_stays_at_or_under_its_budget(file):
  size = file.removesuffix(".gin").split("_")[-1]
  backbone, features = BACKBONES.get(size, BACKBONES["base"])
  prompt = configured(file, backbone=backbone)
  if file == "none.gin":
    assert prompt is None
    return
  assert prompt.features == features
  if isinstance(prompt, plain.Prompt):
    assert prompt == plain.Prompt(length=100, features=768)
    return
  tokens, source, parts = 100, 256, (40, 4, 4)
  if file == "ept_llm.gin":
    tokens, source, parts = 20, 128, (8, 1, 2)
  sizes = {name: getattr(prompt, name) for name in SIZES}
  count = budget.check(tokens=tokens, **sizes)
  assert sum(form.size for form in prompt.parameters().values()) == count.total
  assert prompt.source_length == source
  assert count.limit == "budget"  # No rank is left unused.
  if file.startswith("dept"):
    assert (prompt.length, prompt.rank) in DEPT_PAIRS
    assert count.total == 76800
    assert (prompt.fusion_width, prompt.spaces) == (0, 0)
    assert prompt.decomposition == "dept"
  else:
    assert (prompt.length, prompt.fusion_width, prompt.spaces) == parts
    assert prompt.decomposition == "svd"


@pytest.mark.parametrize(("length", "rank"), DEPT_PAIRS)
def test_each_of_depts_pairs_has_its_file(length, rank):
  prompt = configured(f"dept_{length}_{rank}.gin")
  assert (prompt.length, prompt.rank) == (length, rank)


def test_a_rank_over_the_budget_is_refused_when_a_prompt_file_gives_it():
  assert configured("ept_base.gin", "RANK=29").rank == 29
  with pytest.raises(Exception, match="over the budget") as caught:
    configured("ept_base.gin", "RANK=30")
  error = calling.without_gin(caught.value)
  assert isinstance(error, UserError)
  assert re.search(r"R = 30 make .* over the budget of 100 x 768", str(error))


def test_the_rank_follows_what_the_command_line_changes():
  assert configured("ept_base.gin", "SHORT_LENGTH=60").rank == 14
  assert configured("ept.gin", "FUSION_WIDTH=0", "SPACES=0", "RANK=0").rank == 0
  with pytest.raises(Exception, match="leaves no rank") as caught:
    configured("ept_base.gin", "SHORT_LENGTH=98")
  assert isinstance(calling.without_gin(caught.value), UserError)


@pytest.mark.parametrize(
  "file",
  [f"ept_{size}.gin" for size in BACKBONES]
  + [f"dept_{s}_{r}.gin" for s, r in DEPT_PAIRS],
)
def test_the_table_in_a_header_is_what_the_command_prints(capsys, file):
  header = (FOLDER / file).read_text().split("\nfrom ")[0]
  (call,) = re.findall(r"`tpv budget ?(.*)`:", header)
  shown = "".join(f"{line[4:]}\n" for line in header.split("`:\n")[1].splitlines())
  code, printed, _ = tpv(capsys, *call.split())
  assert code == 0
  assert shown == printed


def test_ept_is_in_every_prompt_file_but_two():
  modules = {path.name: type(configured(path.name)) for path in FOLDER.glob("*.gin")}
  assert modules.pop("plain.gin") is plain.Prompt
  assert modules.pop("none.gin") is type(None)
  assert set(modules.values()) == {ept.EPT}
