"""The plan of a backbone on a mesh: published sizes, and every large leaf cut."""

import dataclasses
import math

import pytest

from tpv_jax import cli
from tpv_jax.training import estimate, plans


@pytest.mark.parametrize(
  ("size", "parameters"),
  # As published with the checkpoints (v1.1: without weights shared with the output).
  [
    ("t5_v1_1_large", 783_150_080),
    ("t5_v1_1_xl", 2_849_757_184),
    ("t5_v1_1_xxl", 11_135_332_352),
  ],
)
def test_a_pod_of_4_by_8_cuts_every_large_parameter_into_eight(size, parameters):
  found = [
    leaf
    for leaf in plans.Planned(size).on(4, 8).leaves
    if not leaf.path.startswith("prompt/")
  ]
  assert sum(math.prod(leaf.shape) for leaf in found) == parameters
  for leaf in found:
    whole, share = math.prod(leaf.shape), math.prod(leaf.share)
    if len(leaf.shape) == 2 and whole > 10_000:
      assert share * 8 == whole, leaf
      assert leaf.cut.count("model") == 1
    else:
      assert leaf.cut.count("data") == 0


def test_the_prompt_is_on_every_chip_whole():
  (prompt,) = [
    leaf
    for leaf in plans.Planned("t5_v1_1_small").on(2, 2).leaves
    if leaf.path.startswith("prompt/")
  ]
  assert prompt.shape == prompt.share == (100, 512)


def test_the_table_counts_bytes_of_a_chip(capsys):
  assert (
    cli.main(["plan", "t5_v1_1_small", "--mesh", "1x1", "--storage", "float32"]) == 0
  )
  text = capsys.readouterr().out
  assert "76,961,152" in text  # Published; 4 bytes each:
  assert f"{76_961_152 * 4 / 2**20:.1f} MiB" in text


def test_what_has_the_width_of_an_ept_prompt_is_cut_over_the_chips():
  made = plans.Planned("t5_v1_1_small", ept=True).on(2, 4)
  leaves = [leaf for leaf in made.leaves if leaf.path.startswith("prompt/")]
  assert len(leaves) == 10
  assert not [x for x in made.kept_whole if "prompt" in x]
  for leaf in leaves:
    assert leaf.share == tuple(128 if size == 512 else size for size in leaf.shape)


def test_what_the_chips_do_not_divide_is_said(capsys):
  arguments = ["t5_v1_1_small", "--mesh", "3x5", "--ept", "--bank", "4"]
  assert cli.main(["plan", *arguments]) == 0
  text = capsys.readouterr().out
  for axis, size, chips in (("prompt_embed", 512, 5), ("heads", 6, 5), ("bank", 4, 3)):
    assert f"'{axis}' of size {size} is replicated: the {chips} devices" in text
  assert cli.main(["plan", "t5_v1_1_small", "--mesh", "3x1"]) == 0
  assert "replicated" not in capsys.readouterr().out


def test_the_prompts_of_a_bank_are_counted(capsys):
  """Each of two chips has half of them."""
  assert cli.main(["plan", "t5_v1_1_small", "--mesh", "2x1", "--bank", "32"]) == 0
  text = capsys.readouterr().out
  assert "32 prompts" in text
  assert f"{32 * 100 * 512:,}" in text
  assert f"{16 * 100 * 512 * 16 / 2**20:.1f} MiB" in text


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["t5_v1_1_small", "--bank", "0"], "--bank is 0; it must be a whole number"),
    (["t5_v1_1_smal"], "There is no size 't5_v1_1_smal'. Did you mean 't5_v1_1_small'"),
    (["t5_v1_1_small", "--mesh", "4"], "'4' is not a mesh: write DATAxMODEL"),
    (["t5_v1_1_small", "t5_v1_1_base"], "A table of several sizes needs --chip"),
    (
      ["t5_v1_1_small", "--chip", "h100", "v5e", "--quantize", "int8"],
      "--quantize is for one size on one chip",
    ),
    (["t5_v1_1_small", "--rows", "0"], "--rows is 0; it must be a whole number"),
    (["t5_v1_1_small", "--rows", "8"], "--rows changes nothing without --chip"),
    (["t5_v1_1_small", "--short-length", "8"], "nothing without --ept"),
    (["t5_v1_1_small", "--source-length", "8"], "without --ept or --chip"),
  ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
  assert cli.main(["plan", *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.usefixtures("compiles_faster")
def test_a_chip_says_whether_a_step_fits_and_what_it_costs(capsys, monkeypatch):
  arguments = ["plan", "smollm2_135m", "--chip", "h100", "--quantize", "int8"]
  assert cli.main(arguments) == 0
  text = " ".join(capsys.readouterr().out.split())
  assert "smollm2_135m on 1 x 1 chips (data x model), bfloat16, kernels int8" in text
  # 134.5 million parameters, 28.3 of them embeddings in bf16, and scales.
  assert "156." in text.split("frozen backbone")[1]
  assert "A step of 16 rows of 256 + 16 tokens: 3.0 TFLOP." in text
  assert "has 74.51 GiB: fits." in text
  assert "40% of 989 TFLOP/s a chip (assumed, not measured)" in text
  small = dataclasses.replace(estimate.CHIPS["h100"], memory=2 * 2**30)
  monkeypatch.setattr(estimate, "CHIPS", {"h100": small})
  assert cli.main(arguments) == 0
  assert "fits with MICROBATCHES = 4" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("compiles_faster")
def test_several_chips_make_a_table(capsys):
  sizes = ["smollm2_135m", "qwen_3_0_6b"]
  assert cli.main(["plan", *sizes, "--chip", "h100", "v5e", "--ept"]) == 0
  head, line, *rows = capsys.readouterr().out.splitlines()
  assert head.count("|") == line.count("|") == 8
  assert [row.split(" | ")[:2] for row in rows] == [
    [f"| {size}", chips] for size in sizes for chips in ("one H100 SXM", "v5e-8")
  ]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    ("--prompt-length 0", "--prompt-length is 0; it must be"),
    ("--ept --short-length 0", "--short-length is 0; it must be"),
    ("--chip h100 --source-length 0", "--source-length is 0; it must be"),
    ("--ept --prompt-length 10", "(--short-length), a narrower fusion"),
    ("--ept --prompt-length 10", "or a larger --prompt-length"),
  ],
)
def test_sizes_that_cannot_be_are_refused_by_the_names_of_options(
  call, message, capsys
):
  assert cli.main(["plan", "smollm2_135m", *call.split()]) == 2
  assert message in capsys.readouterr().err
