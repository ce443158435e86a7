"""The numbers of `tpv inspect` against NumPy's, and that there are pictures of them."""

import dataclasses
import json
import re
import struct

import numpy as np
import pytest

from tpv_jax.core import identity
from tpv_jax.core.errors import UserError
from tpv_jax.vectors import algebra, inspection

NORMS = ("short_prompt", "fused", "projected", "prompt", "delta")


@pytest.fixture
def trained(ept_initial, ept_tuned):
  """Two trained prompts, each with its own of two initial ones."""
  return [
    (ept_tuned(start, task, change), start)
    for start, task, change in (
      (ept_initial(0), "sst2", 1),
      (ept_initial(1), "trec", 2),
    )
  ]


def without(item, *parts):
  """The same prompt with parts switched off."""
  leaves = {
    name: leaf for name, leaf in item.leaves.items() if not name.startswith(parts)
  }
  known = dataclasses.replace(
    item.provenance, initial_digest=identity.prompt_digest(leaves)
  )
  return dataclasses.replace(item, leaves=leaves, provenance=known)


def softmax(scores):
  weights = np.exp(scores)
  return weights / weights.sum(axis=1, keepdims=True)


def png_size(content):
  """Width and height in pixels, as the header of a PNG states them."""
  assert content[:8] == b"\x89PNG\r\n\x1a\n"
  return struct.unpack(">II", content[16:24])


def test_the_json_file_has_the_numbers_of_numpy(trained, tmp_path):
  looks = inspection.look_at_all(trained, ["a", "b"])
  inspection.write(tmp_path / "new" / "folder", looks)
  content = json.loads((tmp_path / "new" / "folder" / "inspection.json").read_text())
  assert [one["name"] for one in content["prompts"]] == [
    "start (seed 0)",
    "a",
    "start (seed 1)",
    "b",
  ]
  assert [one["trained"] for one in content["prompts"]] == [False, True, False, True]
  prompts = [trained[0][1], trained[0][0], trained[1][1], trained[1][0]]
  for prompt, found in zip(prompts, content["prompts"], strict=True):
    p = {name: leaf.astype(np.float64) for name, leaf in prompt.leaves.items()}
    gate = softmax(p["short_prompt"] @ p["gate_kernel"] + p["gate_bias"])
    delta = 8 / np.sqrt(2) * p["low_rank_a"] @ p["low_rank_b"]
    query, key = p["short_prompt"] @ p["fusion_query"], delta @ p["fusion_key"]
    attention = softmax(query @ key.T / np.sqrt(2))
    fused = p["fusion_gamma"] * attention @ delta
    projected = sum(
      gate[:, [k]] * (np.maximum(p["short_prompt"] @ p["space_down"][k], 0) @ up)
      for k, up in enumerate(p["space_up"])
    )
    norms = {
      "short_prompt": p["short_prompt"],
      "fused": fused,
      "projected": projected,
      "prompt": p["short_prompt"] + fused + projected,
      "delta": delta,
    }
    np.testing.assert_allclose(found["gate"], gate, rtol=1e-12)
    np.testing.assert_allclose(found["gate_means"], gate.mean(axis=0), rtol=1e-12)
    entropy = -(gate * np.log(gate)).sum() / len(gate)
    np.testing.assert_allclose(found["gate_entropy"], entropy, rtol=1e-9)
    np.testing.assert_allclose(found["fusion_attention"], attention, atol=1e-12)
    assert found["fusion_gamma"] == float(prompt.leaves["fusion_gamma"])
    for name, values in norms.items():  # What is folded is rounded to fp32.
      np.testing.assert_allclose(found["norms"][name], np.linalg.norm(values), 1e-6)
    assert set(found["norms"]) == set(norms)
    assert found["digest"] == identity.prompt_digest(prompt.leaves)
    assert found["path"] == prompt.name
    assert found["provenance"] == prompt.provenance.to_json()


def test_the_pictures_are_of_a_size_to_be_read(trained, tmp_path):
  looks = inspection.look_at_all(trained, ["a", "b"])
  inspection.write(tmp_path, looks)
  for name in (inspection.GATE, inspection.FUSION):
    content = (tmp_path / name).read_bytes()
    width, height = png_size(content)
    assert 500 < width < 4000
    assert 300 < height < 4000
    assert len(content) > 10_000
  many = [looks[1]] * 13
  wide, tall = png_size(inspection.draw_gates(many))
  assert max(wide, tall) < 4000
  assert tall > png_size(inspection.draw_gates(looks))[1]
  assert max(png_size(inspection.draw_fusion(many))) < 4000


def test_prompts_of_one_start_stand_behind_it_and_it_is_looked_at_once(
  trained, ept_tuned
):
  start = trained[0][1]
  prompts = [*trained, (ept_tuned(start, "rte", 3), start)]
  looks = inspection.look_at_all(prompts, ["sst2", "trec", "rte"])
  assert [one.name for one in looks] == (
    ["start (seed 0)", "sst2", "rte", "start (seed 1)", "trec"]
  )


def test_the_start_of_another_run_does_not_stand_beside_a_prompt(trained):
  (one, _), (_, start) = trained
  with pytest.raises(UserError, match=r"'sst2' was tuned from .* is of another run"):
    inspection.look_at_all([(one, start)], ["a"])


def test_a_prompt_whose_start_is_not_known_stands_alone(trained):
  tuned, start = trained[0]
  assert [one.name for one in inspection.look_at_all([(tuned, None)], ["a"])] == ["a"]
  (alone,) = inspection.look_at_all([(start, start)], ["initial_prompt"])
  assert (alone.name, alone.trained) == ("initial_prompt", False)


def test_the_table_says_dash_where_a_part_is_switched_off(trained):
  tuned, _ = trained[0]
  looks = [
    inspection.look(tuned, "both"),
    inspection.look(without(tuned, "gate", "space"), "fusion"),
    inspection.look(without(tuned, "fusion"), "spaces"),
  ]
  header, *lines = inspection.table(looks).splitlines()
  assert re.split(r"\s{2,}", header.strip()) == (
    [f"gate {k}" for k in (1, 2)] + ["entropy", "gamma"] + [f"|{x}|" for x in NORMS]
  )
  both, fusion, spaces = (re.split(r"\s{2,}", line) for line in lines)
  assert "-" not in both
  assert fusion[1:4] == ["-", "-", "-"]
  assert fusion[7] == "-"
  assert (spaces[4], spaces[6]) == ("-", "-")
  assert spaces[1:4] == both[1:4]
  assert both[3].endswith(" of 0.693")
  assert inspection.draw_gates(looks[1:2]) is None
  assert inspection.draw_fusion(looks[2:]) is None


def test_a_gate_that_chose_has_no_entropy(trained):
  tuned, _ = trained[0]
  leaves = dict(tuned.leaves, gate_bias=np.float32([1e4, 0]))
  one = inspection.look(dataclasses.replace(tuned, leaves=leaves), "a")
  np.testing.assert_array_equal(one.gate, [[1, 0]] * 3)
  assert one.gate_entropy == 0
  assert " 0.000 of 0.693" in inspection.table([one])


def test_what_exists_is_replaced_only_when_asked_and_nothing_stale_stays(
  trained, tmp_path
):
  tuned, _ = trained[0]
  inspection.write(tmp_path, [inspection.look(tuned, "a")])
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert set(before) == set(inspection.OUTPUTS)
  looks = [inspection.look(without(tuned, "fusion"), "a")]
  with pytest.raises(UserError, match=r"inspection.json' exists and was left as it is"):
    inspection.write(tmp_path, looks)
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
  inspection.write(tmp_path, looks, overwrite=True)
  assert {path.name for path in tmp_path.iterdir()} == {"inspection.json", "gate.png"}


def test_what_has_neither_gate_nor_fusion_is_refused(trained, initial_prompt):
  tuned, start = trained[0]
  for item, problem in (
    (algebra.diff(tuned, start), "is a vector, and a difference has no gate"),
    (algebra.diff(tuned, start, space="factor"), "is a vector"),
    (algebra.fold(tuned), "is folded, and its gate and fusion went into"),
    (initial_prompt(0), "is a plain prompt"),
    (without(tuned, "gate", "space", "fusion"), "is a DePT prompt"),
  ):
    with pytest.raises(UserError, match=f"{problem}.*Give the run folder of an EPT"):
      inspection.look(item, "a")
  unknown = dataclasses.replace(
    tuned, provenance=dataclasses.replace(tuned.provenance, alpha=None)
  )
  with pytest.raises(UserError, match="does not state their alpha"):
    inspection.look(unknown, "a")
