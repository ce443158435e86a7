"""`tpv export`: each target reads its own options; its files are tested with their rooms."""

import pytest

from tpv_jax import cli


@pytest.mark.parametrize(
  ("target", "option", "readers"),
  [
    ("npy", "--base-model=x", "peft"),
    ("backbone", "--base-model=x", "peft"),
    ("backbone", "--which=best", "peft or npy or prompt-embeds or npz"),
    ("backbone", "--alpha=8", "peft or npy or prompt-embeds or npz"),
    ("peft", "--name=mine", "backbone"),
    ("npz", "--name=mine", "backbone"),
    ("prompt-embeds", "--base-model=x", "peft"),
    ("npz", "--without-delta", "peft or npy or prompt-embeds"),
    ("backbone", "--without-delta", "peft or npy or prompt-embeds"),
  ],
)
def test_an_option_that_a_target_does_not_read_is_refused_by_its_name(
  target, option, readers, make_run, tmp_path, capsys
):
  run, output = make_run("run"), tmp_path / "out"
  call = ["export", str(run), "--to", target, "-o", str(output), option]
  assert cli.main(call) == 2
  name = option.split("=")[0]
  assert capsys.readouterr().err == (
    f"error: {name} is read with --to {readers} only, and --to is {target}. Leave it "
    "out.\n"
  )
  assert not output.exists()


@pytest.mark.parametrize("method", ["plain", "ept"])
def test_the_ending_of_arrays_is_that_of_their_format(
  make_run, tmp_path, capsys, method
):
  run = make_run("run", method=method)
  for target, given, right in (
    ("npz", "x.npy", "x.npz"),
    ("npy", "x.npz", "x.npy"),
    ("npz", "x.bin", "x.bin.npz"),
  ):
    call = ["export", str(run), "--to", target, "-o", str(tmp_path / given)]
    assert cli.main(call) == 2
    said = f"does not end in .{target}. Name the output '{tmp_path / right}'."
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_trained_a_prompt_has_no_backbone_to_export(
  make_run, tmp_path, capsys
):
  output = tmp_path / "backbone.safetensors"
  call = ["export", str(make_run("run")), "--to", "backbone", "-o", str(output)]
  assert cli.main(call) == 2
  assert "has no checkpoint, so there are no weights" in capsys.readouterr().err
  assert not output.exists()
