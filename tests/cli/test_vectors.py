"""Every verb of `tpv`, in this process and, for what a process decides, in a fresh one."""

import errno
import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tpv_jax import cli
from tpv_jax.cli.names import short_names
from tpv_jax.core import identity
from tpv_jax.vectors import moving, store
from tpv_jax.vectors.merging.registry import BY_DATA, RULES
from tpv_jax.vectors.provenance import Provenance, Term

logging.getLogger("absl").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def tpv(capsys):
  """Runs `tpv` with these arguments; returns what it printed, or fails."""

  def run(*arguments):
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    return printed.out

  return run


@pytest.fixture
def refused(capsys):
  """Runs `tpv` with these arguments; returns the one line with which it refuses."""

  def run(*arguments):
    before = sorted(pathlib.Path().rglob("*"))
    code = cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sorted(pathlib.Path().rglob("*")) == before
    return printed.err

  return run


@pytest.fixture
def vectors(make_run, tpv):
  """Writes runs and the vectors sst2, rte (of one initial prompt) and trec (another)."""
  make_run("runs/sst2", "sst2", 0, 1)
  make_run("runs/rte", "rte", 0, 2)
  make_run("runs/trec", "trec", 1, 3)
  for task in ("sst2", "rte", "trec"):
    tpv("diff", f"runs/{task}", "-o", f"{task}.safetensors")


def values(path):
  return store.read(path)[0]["prompt"].astype(np.float64)


def terms(path):
  return {term.task: term.coefficient for term in store.read(path)[1].terms}


def python(*arguments, **environment):
  """Runs the interpreter in a process of its own that finds this package."""
  package = str(pathlib.Path(cli.__file__).parents[2])
  return subprocess.run(
    [sys.executable, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": package, **environment},
  )


def fresh(*arguments, **environment):
  """Runs `python -m tpv_jax` in a process of its own."""
  return python("-m", "tpv_jax", *arguments, **environment)


def test_diff_of_a_run_needs_no_second_path(make_run, tpv):
  run = make_run("run")
  printed = tpv("diff", run, "-o", "v.safetensors")
  assert printed.startswith("Wrote the vector 'v.safetensors': sst2.\n")
  expected = values(run / "best_prompt.safetensors") - values(
    run / "initial_prompt.safetensors"
  )
  expected = expected.astype(np.float32)
  np.testing.assert_array_equal(values("v.safetensors"), expected)
  tpv("diff", run / "best_prompt.safetensors", "-o", "same.safetensors")
  tpv("diff", run, run, "-o", "also.safetensors")
  for name in ("same", "also"):
    np.testing.assert_array_equal(values(f"{name}.safetensors"), expected)


def test_diff_takes_the_last_prompt_when_asked(make_run, tpv):
  run = make_run("run")
  tpv("diff", run, "--which", "last", "-o", "v.safetensors")
  expected = values(run / "last_prompt.safetensors") - values(
    run / "initial_prompt.safetensors"
  )
  np.testing.assert_array_equal(values("v.safetensors"), expected.astype(np.float32))


def test_sum_adds_with_weights_also_negative_ones(vectors, tpv):
  tpv("sum", "sst2.safetensors", "rte.safetensors", "-o", "a.safetensors")
  assert terms("a.safetensors") == {"sst2": 1.0, "rte": 1.0}
  printed = tpv(
    *("sum", "sst2.safetensors", "rte.safetensors", "-w", "1", "-0.5"),
    *("-o", "b.safetensors"),
  )
  assert "sst2 - 0.5 rte" in printed
  assert terms("b.safetensors") == {"sst2": 1.0, "rte": -0.5}
  expected = values("sst2.safetensors") - 0.5 * values("rte.safetensors")
  np.testing.assert_array_equal(values("b.safetensors"), expected.astype(np.float32))


def test_weights_may_be_written_with_exponents(vectors, tpv):
  tpv(
    *("sum", "sst2.safetensors", "rte.safetensors", "-w", "-1e-3", "-.5e+1"),
    *("-o", "a.safetensors"),
  )
  assert terms("a.safetensors") == {"sst2": -0.001, "rte": -5.0}


def test_merge_takes_the_options_of_its_rule(vectors, tpv):
  both = "sst2.safetensors", "rte.safetensors"
  tpv("merge", *both, "--rule", "linear", "-w", "3", "1", "-o", "a.safetensors")
  assert terms("a.safetensors") == {"sst2": 0.75, "rte": 0.25}
  call = "merge", *both, "--rule", "slerp", "--t", "0", "--lambda", "-2"
  assert "merged by slerp, t 0" in tpv(*call, "-o", "b.safetensors")
  assert terms("b.safetensors") == {"sst2": -2.0}


def test_a_merge_that_is_not_linear_states_what_was_merged(vectors, tpv):
  both = "sst2.safetensors", "rte.safetensors"
  call = ("merge", *both, "--rule", "ties", "--density", "0.2", "0.5", "-w", "2", "1")
  printed = tpv(*call, "--lambda", "0.7", "-o", "m.safetensors")
  assert "Wrote the vector 'm.safetensors': 0.7 ties(" in printed
  (term,) = store.read("m.safetensors")[1].terms
  digests = {
    identity.prompt_digest(store.read(path)[0]): (weight, density)
    for path, weight, density in zip(both, (2.0, 1.0), (0.2, 0.5), strict=True)
  }
  assert {part.digest for part in term.merge.parts} == set(digests)
  stated = zip(term.merge.weights, dict(term.merge.settings)["density"], strict=True)
  assert list(stated) == [digests[part.digest] for part in term.merge.parts]
  shown = tpv("show", "m.safetensors")
  assert "merged by     ties: density (" in shown
  assert "part        sst2, digest" in shown
  tpv("apply", "m.safetensors", "runs/sst2", "-o", "p.safetensors")
  assert store.read("p.safetensors")[1].tasks == term.merge.tasks


def test_the_seed_of_a_merge_is_taken_and_stated(vectors, tpv):
  call = ("merge", "sst2.safetensors", "rte.safetensors", "--rule", "dare_linear")
  for seed in ("0", "1", "0"):
    tpv(*call, "--seed", seed, "-o", f"{seed}.safetensors", "--overwrite")
  assert (values("0.safetensors") != values("1.safetensors")).any()
  (term,) = store.read("1.safetensors")[1].terms
  assert dict(term.merge.settings) == {"density": 0.5, "seed": 1}


def test_prompts_are_joined_and_stay_prompts(vectors, tpv, refused):
  tpv("merge", "runs/sst2", "runs/rte", "--rule", "concat", "-o", "p.safetensors")
  leaves, known = store.read("p.safetensors")
  one, other = (
    store.read(f"runs/{task}/best_prompt.safetensors")[0]["prompt"]
    for task in ("sst2", "rte")
  )
  assert (leaves["prompt"] == np.concatenate([one, other])).all()
  assert known.kind == "prompt"
  joined = ("merge", "runs/sst2", "runs/rte", "--rule", "concat", "-o", "q.safetensors")
  assert "Leave out --allow-mixed-origin" in refused(*joined, "--allow-mixed-origin")
  assert "is a prompt" in refused("negate", "p.safetensors", "-o", "n.safetensors")
  printed = refused(
    "merge", "sst2.safetensors", "--rule", "concat", "-o", "n.safetensors"
  )
  assert "Apply each vector first (tpv apply sst2.safetensors INITIAL" in printed


def test_bad_input_of_a_merge_is_one_line(vectors, tpv, refused):
  tpv("scale", "sst2.safetensors", "0", "-o", "zero.safetensors")
  both = ("sst2.safetensors", "rte.safetensors")
  for arguments, expected in {
    ("--rule", "ties", "--density", "0"): "density of ties is 0.0; it must be",
    ("--rule", "ties", "--density", "1.5"): "density of ties is 1.5; it must be",
    ("--rule", "ties", "--density", "nan"): "density of ties is nan",
    ("--rule", "ties", "--density", ".1", ".2", ".3"): "density of ties has 3 values",
    ("--rule", "della", "--density", "0.9"): "from 0.75 to 1.05, and they must lie",
    ("--rule", "della", "--epsilon", "0.5"): "from 0 to 1, and they must lie between",
    ("--rule", "consensus", "--k", "3"): "k of consensus is 3, and only 2 vectors",
    ("--rule", "slerp", "--t", "1.01"): "t of slerp is 1.01; it must be",
    ("--rule", "ties", "-w", "1", "-1"): "An average has no weights like",
    ("--rule", "nuslerp", "-w", "0", "0"): "has no weights like 0, 0",
    (
      "--rule",
      "breadcrumbs",
      "--gamma",
      "1",
    ): "gamma of breadcrumbs is 1.0; it must be",
    ("--rule", "dare_ties", "--seed", "-1"): "seed of dare_ties is -1; it must be",
    ("--rule", "ties", "--epsilon", "0.1"): "It is an option of della_linear, della.",
    ("--rule", "tie"): "Did you mean 'ties'",
    ("--rule", "nearswap"): "'nearswap' is not offered: it draws one model",
    ("--rule", "sce", "-w", "1", "2"): "'sce' takes no weights",
  }.items():
    printed = refused("merge", *both, *arguments, "-o", "out.safetensors")
    assert expected in printed
    assert printed.count("\n") == 1
  for arguments, expected in {
    (*both, "sst2.safetensors", "--rule", "nuslerp"): "exactly 2 vectors",
    ("zero.safetensors", "--rule", "ties"): "All vectors are zero",
    ("sst2.safetensors", "trec.safetensors", "--rule", "ties"): "different initial",
  }.items():
    assert expected in refused("merge", *arguments, "-o", "out.safetensors")
  for arguments, expected in {
    ("--seed", "1.5"): "'1.5' is not a whole number",
    ("--nuslerp-flatten", "maybe"): "'maybe' is neither true nor false",
    ("--densty", "1"): "unrecognized arguments: --densty",
  }.items():
    assert expected in refused("merge", *both, *arguments, "-o", "out.safetensors")
  assert not pathlib.Path("out.safetensors").exists()


def test_merge_lists_its_rules_without_any_vector(capsys):
  assert cli.main(["merge", "--list"]) == 0
  printed = capsys.readouterr().out
  named = [line for line in printed.splitlines() if line[0] != " "]
  by_data = "those that read data, for 'tpv merge-by-data'"
  assert named == [*RULES, by_data, "not offered"]
  for rule in BY_DATA:
    assert f"\n  {rule}\n    " in printed
  assert "takes WEIGHTS, OPTIONS (fisher_floor 1e-06, split train" in printed
  assert "  nearswap: it draws one model towards another" in printed
  assert "exactly 2 vectors, no weights, --t (default 0.5)" in printed


def test_negate_negates_every_task_of_a_sum(vectors, tpv):
  tpv("sum", "sst2.safetensors", "rte.safetensors", "-o", "a.safetensors")
  assert "-sst2 - rte" in tpv("negate", "a.safetensors", "-o", "b.safetensors")
  np.testing.assert_array_equal(values("b.safetensors"), -values("a.safetensors"))


@pytest.mark.parametrize("factor", ["-1", "-0.25", "-1e-2", "3"])
def test_scale_takes_negative_numbers(vectors, tpv, factor):
  tpv("scale", "sst2.safetensors", factor, "-o", "a.safetensors")
  assert terms("a.safetensors") == {"sst2": float(factor)}
  expected = (float(factor) * values("sst2.safetensors")).astype(np.float32)
  np.testing.assert_array_equal(values("a.safetensors"), expected)


def test_analogy_is_c_plus_b_minus_a(vectors, tpv):
  tpv("scale", "sst2.safetensors", "2", "-o", "c.safetensors")
  names = ("sst2.safetensors", "rte.safetensors", "c.safetensors")
  tpv("analogy", *names, "-o", "d.safetensors")
  assert terms("d.safetensors") == {"sst2": 1.0, "rte": 1.0}
  a, b, c = map(values, names)
  np.testing.assert_allclose(values("d.safetensors"), c + b - a, rtol=2**-23)


def test_apply_to_a_run_means_its_initial_prompt(vectors, tpv):
  printed = tpv("apply", "sst2.safetensors", "runs/sst2", "-o", "p.safetensors")
  assert "applied to its own initial prompt" in printed
  np.testing.assert_allclose(
    values("p.safetensors"),
    values("runs/sst2/best_prompt.safetensors"),
    rtol=0,
    atol=2**-21,
  )


def test_apply_across_origins_is_said_and_recorded(vectors, tpv):
  printed = tpv(
    *("apply", "sst2.safetensors", "runs/trec", "-c", "-0.5", "-o", "p.safetensors")
  )
  assert "cross-origin: from initial prompt" in printed
  lengths = [
    np.linalg.norm(values(path))
    for path in ("sst2.safetensors", "runs/trec/initial_prompt.safetensors")
  ]
  ratio = f"{0.5 * lengths[0] / lengths[1]:.3g}"
  assert f"  norm(vector) / norm(start) is {ratio}; below 2.5 (our" in printed
  own = tpv("apply", "sst2.safetensors", "runs/sst2", "-o", "own.safetensors")
  assert "norm(start)" not in own
  assert store.read("p.safetensors")[1].cross_origin is True
  expected = values("runs/trec/initial_prompt.safetensors") - 0.5 * values(
    "sst2.safetensors"
  )
  np.testing.assert_array_equal(values("p.safetensors"), expected.astype(np.float32))
  assert json.loads(tpv("show", "p.safetensors", "--json"))["cross_origin"] is True


def test_cosine_prints_an_aligned_table(vectors, tpv):
  printed = tpv("cosine", "sst2.safetensors", "rte.safetensors", "trec.safetensors")
  lines = printed.splitlines()
  assert lines[0].split() == ["sst2", "rte", "trec"]
  assert len(set(map(len, lines))) == 1
  x, y = values("sst2.safetensors").ravel(), values("rte.safetensors").ravel()
  expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  assert lines[1].split() == ["sst2", "1.0000", f"{expected:.4f}", lines[1].split()[3]]
  assert lines[2].split()[1] == f"{expected:.4f}"


def test_cosine_gives_json(vectors, tpv):
  printed = tpv("cosine", "runs/sst2", "sst2.safetensors", "--which", "last", "--json")
  content = json.loads(printed)
  assert content["kinds"] == ["prompt", "vector"]
  assert content["paths"] == ["runs/sst2", "sst2.safetensors"]
  x = values("runs/sst2/last_prompt.safetensors").ravel()
  y = values("sst2.safetensors").ravel()
  expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  np.testing.assert_allclose(content["cosine"], [[1, expected], [expected, 1]])


@pytest.mark.parametrize("which", ["last", "initial"])
def test_which_is_refused_where_no_run_folder_is_given(
  vectors, tpv, refused, which, monkeypatch
):
  tpv("export", "runs/sst2", "--to", "npy", "-o", "sst2.npy")
  said = f"--which {which} says which prompt of a run folder is meant, and "
  file, option = "runs/sst2/best_prompt.safetensors", ("--which", which)
  for call in (
    ("show", file),
    ("show", "embedded"),
    ("fold", file, "-o", "new.safetensors"),
    ("export", "sst2.npy", "--to", "npz", "-o", "new.npz"),
  ):
    assert said + f"'{call[1]}' is none. Leave it out." in refused(*call, *option)
  assert said + "none was" in refused("cosine", file, "rte.safetensors", *option)
  if which == "last":
    files = ("sst2.safetensors", "rte.safetensors")
    for call in (
      ("diff", file, "runs/sst2", "-o", "new.safetensors"),
      ("inspect", file, "-o", "new"),
      ("conflicts", *files),
      ("group", *files, "-k", "2"),
      ("nearest", *files),
    ):
      assert said in refused(*call, *option), call
    tpv("nearest", "sst2.safetensors", "runs", *option)


def test_nearest_ranks_what_it_finds_and_says_what_it_left_out(vectors, tpv):
  printed = tpv("nearest", "sst2.safetensors", "runs", "--by", "norm")
  header, *lines = printed.splitlines()
  assert header.split() == ["terms", "cosine", "dot", "norm", "initial"]
  norms = {
    name: np.linalg.norm(values(f"{name}.safetensors")) for name in ("rte", "trec")
  }
  ranked = sorted(norms, key=norms.get, reverse=True)
  assert [line.split()[0] for line in lines[:2]] == ranked
  assert [line.split()[-1] for line in lines[:2]] == [
    {"rte": "same", "trec": "other"}[name] for name in ranked
  ]
  assert lines[2:] == ["left out: runs/sst2: it has the values of 'sst2.safetensors'"]
  content = json.loads(tpv("nearest", "runs/sst2", "rte.safetensors", "--json"))
  v, w = values("sst2.safetensors"), values("rte.safetensors")
  (found,) = content["nearest"]
  assert found["dot"] == pytest.approx((v * w).sum() / len(v))
  assert (found["path"], found["terms"]) == ("rte.safetensors", "rte")
  one = json.loads(tpv("nearest", "runs/sst2", "runs", "--top", "1", "--json"))
  assert len(one["nearest"]) == 1


def test_nearest_refuses_where_nothing_can_be_compared(vectors, refused):
  line = refused("nearest", "sst2.safetensors", "runs/sst2")
  assert "No vector there can be compared with 'sst2.safetensors'" in line
  assert "--top is 0" in refused("nearest", "sst2.safetensors", "runs", "--top", "0")
  assert "'none'" in refused("nearest", "sst2.safetensors", "none")


def test_conflicts_print_a_table_give_json_and_draw(vectors, tpv, refused):
  named = ("sst2.safetensors", "runs/rte", "trec.safetensors")
  lines = tpv("conflicts", *named).splitlines()
  assert [line.split("  ")[0] for line in lines[1:]] == [
    "sst2 and rte",
    "sst2 and trec",
    "rte and trec",
  ]
  content = json.loads(tpv("conflicts", *named, "--json", "--png", "c.png"))
  assert pathlib.Path("c.png").read_bytes().startswith(b"\x89PNG")
  first = content["pairs"][0]
  v, w = values("sst2.safetensors"), values("rte.safetensors")
  assert first["same_sign"] == pytest.approx(np.mean(np.sign(v) == np.sign(w)))
  assert len(first["tokens"]["prompt"]) == len(v)
  assert "c.png" in refused("conflicts", *named, "--png", "c.png")
  assert "must end with '.png'" in refused("conflicts", *named, "--png", "c.jpg")
  tpv("conflicts", *named, "--png", "c.png", "--overwrite")


def test_group_puts_vectors_into_groups_and_draws_their_tree(vectors, tpv, refused):
  tpv(
    *("sum", "sst2.safetensors", "rte.safetensors", "-w", "1", "0.1"),
    *("-o", "near.safetensors"),
  )
  named = ("trec.safetensors", "sst2.safetensors", "rte.safetensors")
  printed = tpv("group", *named, "near.safetensors", "-k", "3", "--png", "tree.png")
  lines = printed.splitlines()
  assert [line.split()[0] for line in lines] == ["group", "1", "2", "3"]
  assert "sst2, near" in lines[2]
  assert pathlib.Path("tree.png").read_bytes().startswith(b"\x89PNG")
  content = json.loads(tpv("group", "runs", "-k", "1", "--json"))
  assert content["groups"][0]["names"] == ["rte", "sst2", "trec"]
  assert "4 groups of 3 vectors" in refused("group", "runs", "-k", "4")


def test_group_leaves_out_what_is_unlike_the_first(vectors, make_run, tpv, refused):
  make_run("runs/z_ept", method="ept")
  lines = tpv("group", "runs", "-k", "2").splitlines()
  assert lines[-1].startswith("left out: runs/z_ept: it has other shapes (delta ")
  told = refused("group", "runs/sst2", "runs/z_ept", "-k", "2")
  assert "only 1 of those given can be compared" in told
  assert "left out: runs/z_ept: it has other shapes (delta " in told


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["a/x.safetensors", "b/y"], ["x", "y"]),
    (["a/x.safetensors", "b/x.safetensors", "c"], ["a/x", "b/x", "c"]),
    (["r/a/x", "s/a/x", "s/b/x"], ["r/a/x", "s/a/x", "b/x"]),
    (["x", "x"], ["x (1)", "x (2)"]),
    (["x", "a/x"], ["x", "a/x"]),
    (["/x", "/a/x"], ["/x", "a/x"]),
    ([], []),
  ],
)
def test_names_are_as_short_as_they_can_be_and_differ(names, expected):
  assert short_names(names) == expected


def test_show_tells_how_long_a_vector_is_beside_its_start(vectors, tpv):
  lengths = [
    np.linalg.norm(values(path))
    for path in ("sst2.safetensors", "runs/sst2/initial_prompt.safetensors")
  ]
  printed = tpv("show", "sst2.safetensors")
  ratio, start = f"{lengths[0] / lengths[1]:.3g}", f"{lengths[1]:.6g}"
  assert f"\n  ratio       {ratio} of the norm of its start, {start}\n" in printed
  assert lengths[0] / lengths[1] > moving.MOVES_FROM
  assert "hint" not in printed
  tpv("scale", "sst2.safetensors", "0.1", "-o", "small.safetensors")
  assert "\n  hint        below 2.5 (our threshold" in tpv("show", "small.safetensors")
  content = json.loads(tpv("show", "sst2.safetensors", "--json"))
  assert content["ratio"] == pytest.approx(lengths[0] / lengths[1])
  for path in ("runs/sst2", "runs/sst2/initial_prompt.safetensors"):
    assert "of its start" not in tpv("show", path)


def test_show_tells_all_that_is_known(vectors, tpv):
  tpv(
    *("sum", "sst2.safetensors", "trec.safetensors", "--allow-mixed-origin"),
    *("-o", "m.safetensors"),
  )
  printed = tpv("show", "m.safetensors")
  assert re.search(r"^kind +vector$", printed, re.M)
  assert re.search(r"^terms +sst2 \+ trec$", printed, re.M)
  assert len(re.findall(r"^mixed origin +\w{64}$", printed, re.M)) == 2
  assert re.search(r"^note .*--allow-mixed-origin", printed, re.M)
  content = json.loads(tpv("show", "m.safetensors", "--json"))
  assert content["terms"][1] == {"task": "trec", "coefficient": 1.0}
  assert content["leaves"] == {"prompt": [4, 6]}
  assert content["initial_digest"] is None


def save_checkpoint(path, prompt):
  leaves = prompt if isinstance(prompt, dict) else {"prompt": prompt}
  tree = {"target": {"prompt": leaves}, "state": {"step": np.int32(9)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    state = pathlib.Path(path, "state").absolute()
    checkpointer.save(state, args=ocp.args.PyTreeSave(tree))


def test_a_t5x_checkpoint_goes_the_whole_way(vectors, tpv, refused):
  initial = values("runs/sst2/initial_prompt.safetensors").astype(np.float32)
  save_checkpoint("t5x/checkpoint_0", initial)
  save_checkpoint("t5x/checkpoint_9", initial + np.float32(0.5))
  shown = tpv("show", "t5x/checkpoint_9")
  assert re.search(r"^terms +unknown task$", shown, re.M)
  assert re.search(r"^backbone +unknown$", shown, re.M)
  assert "give its initial prompt" in refused(
    "diff", "t5x/checkpoint_9", "-o", "v.safetensors"
  )
  two = ("t5x/checkpoint_9", "t5x/checkpoint_0")
  tpv("diff", *two, "-o", "unknown.safetensors")
  assert terms("unknown.safetensors") == {None: 1.0}
  assert "does not state its backbone" in refused(
    "sum", "unknown.safetensors", "rte.safetensors", "-o", "s.safetensors"
  )
  fingerprint = store.read("rte.safetensors")[1].backbone_fingerprint
  for backbone in (fingerprint, "rte.safetensors", "runs/rte"):
    tpv(
      *("diff", *two, "--task", "imdb", "--backbone", backbone),
      *("-o", "imdb.safetensors", "--overwrite"),
    )
    assert store.read("imdb.safetensors")[1].backbone_fingerprint == fingerprint
  tpv("sum", "imdb.safetensors", "rte.safetensors", "-o", "s.safetensors")
  assert terms("s.safetensors") == {"imdb": 1.0, "rte": 1.0}
  np.testing.assert_allclose(
    values("s.safetensors"), 0.5 + values("rte.safetensors"), atol=2**-22
  )


@pytest.fixture
def ept_runs(make_run):
  """Writes the EPT runs sst2 and rte, of one initial prompt, and trec, of another."""
  make_run("runs/sst2", "sst2", 0, 1, method="ept")
  make_run("runs/rte", "rte", 0, 2, method="ept")
  make_run("runs/trec", "trec", 1, 3, method="ept")


def test_fold_writes_what_an_ept_prompt_does(ept_runs, tpv, numpy_fold):
  for which in ("best", "last", "initial"):
    printed = tpv(
      *("fold", "runs/sst2", "--which", which, "-o", f"{which}.safetensors")
    )
    assert "  delta [5, 6], prompt [3, 6], norm" in printed
    leaves, _ = store.read(f"runs/sst2/{which}_prompt.safetensors")
    folded, known = store.read(f"{which}.safetensors")
    for name, leaf in numpy_fold(leaves, 8.0).items():
      np.testing.assert_allclose(folded[name], leaf, rtol=2e-7)
    assert (known.space, known.alpha) == ("effective", None)
  known = store.read("initial.safetensors")[1]
  assert known.initial_digest == identity.prompt_digest(
    store.read("initial.safetensors")[0]
  )
  tpv("fold", "best.safetensors", "-o", "again.safetensors")
  assert store.read("again.safetensors")[1] == store.read("best.safetensors")[1]


def test_a_vector_of_ept_runs_goes_the_whole_way(ept_runs, tpv, numpy_fold):
  for task in ("sst2", "rte"):
    tpv("diff", f"runs/{task}", "-o", f"{task}.safetensors")
  tpv("sum", "sst2.safetensors", "rte.safetensors", "-o", "both.safetensors")
  printed = tpv("apply", "both.safetensors", "runs/rte", "-o", "p.safetensors")
  assert "applied to its own initial prompt" in printed
  start, *ends = (
    numpy_fold(store.read(f"runs/{path}_prompt.safetensors")[0], 8.0)
    for path in ("sst2/initial", "sst2/best", "rte/best")
  )
  leaves, _ = store.read("p.safetensors")
  for name in ("prompt", "delta"):
    expected = ends[0][name] + ends[1][name] - start[name]
    np.testing.assert_allclose(leaves[name], expected, rtol=0, atol=2e-5)
  assert terms("p.safetensors") == {"sst2": 1.0, "rte": 1.0}
  shown = tpv("show", "p.safetensors")
  assert re.search(r"^space +effective \(what stands before a source, and", shown, re.M)
  assert re.search(r"^method +ept$", shown, re.M)
  assert "alpha" not in shown


def test_the_factor_space_is_asked_for_and_said(ept_runs, tpv):
  printed = tpv("diff", "runs/sst2", "--space", "factor", "-o", "f.safetensors")
  assert "  factor space, 127 values in 10 leaves, norm" in printed
  shown = tpv("show", "f.safetensors")
  assert re.search(r"^space +factor \(a difference of parameters, for use", shown, re.M)
  assert re.search(r"^  alpha +8.0$", shown, re.M)
  assert re.search(r"^  folded +\w{64}$", shown, re.M)
  content = json.loads(tpv("show", "f.safetensors", "--json"))
  assert (content["space"], content["alpha"]) == ("factor", 8.0)
  tpv("apply", "f.safetensors", "runs/rte", "-o", "p.safetensors")
  applied, known = store.read("p.safetensors")
  tuned, _ = store.read("runs/sst2/best_prompt.safetensors")
  for name, leaf in tuned.items():
    np.testing.assert_allclose(applied[name], leaf, rtol=0, atol=2**-21)
  assert known.space == "factor"
  assert "'tpv fold' gives what they do" in tpv("show", "p.safetensors")


def test_a_plain_prompt_has_one_space(vectors, tpv):
  tpv("diff", "runs/sst2", "--space", "factor", "-o", "same.safetensors")
  assert pathlib.Path("same.safetensors").read_bytes() == (
    pathlib.Path("sst2.safetensors").read_bytes()
  )
  tpv("fold", "runs/sst2", "-o", "folded.safetensors")
  assert pathlib.Path("folded.safetensors").read_bytes() == (
    pathlib.Path("runs/sst2/best_prompt.safetensors").read_bytes()
  )
  shown = tpv("show", "runs/sst2")
  assert re.search(r"^space +effective \(what stands before a source\)$", shown, re.M)


def test_the_spaces_are_never_mixed(ept_runs, tpv, refused):
  tpv("diff", "runs/sst2", "-o", "e.safetensors")
  tpv("diff", "runs/rte", "--space", "factor", "-o", "f.safetensors")
  tpv("diff", "runs/trec", "--space", "factor", "-o", "g.safetensors")
  tpv("fold", "runs/sst2", "-o", "folded.safetensors")
  for arguments, expected in {
    ("sum", "e.safetensors", "f.safetensors"): "one is of the effective space",
    ("sum", "f.safetensors", "g.safetensors", "--allow-mixed-origin"): (
      "differences from different initial parameters"
    ),
    ("apply", "f.safetensors", "runs/trec"): "only to the initial parameters",
    ("apply", "f.safetensors", "folded.safetensors"): "is folded, but the factor space",
    ("fold", "e.safetensors"): "but a prompt is needed here",
    ("diff", "folded.safetensors", "runs/sst2", "--space", "factor"): "is folded",
    ("diff", "runs/sst2", "runs/trec", "--space", "factor"): "leave out --space factor",
    ("diff", "runs/sst2", "--alpha", "4"): "states another alpha (8) than --alpha (4)",
  }.items():
    assert expected in refused(*arguments, "-o", "out.safetensors")


def test_a_foreign_ept_checkpoint_needs_its_alpha_from_the_user(
  ept_runs, tpv, refused, numpy_fold
):
  for which, step in (("initial", 0), ("best", 9)):
    leaves, _ = store.read(f"runs/sst2/{which}_prompt.safetensors")
    save_checkpoint(f"t5x/checkpoint_{step}", leaves)
  two = ("t5x/checkpoint_9", "t5x/checkpoint_0")
  for command in (("fold", two[0]), ("diff", *two)):
    assert "does not state their alpha" in refused(*command, "-o", "x.safetensors")
  assert "Alpha is nan" in refused(
    "fold", two[0], "--alpha", "nan", "-o", "x.safetensors"
  )
  printed = tpv("fold", two[0], "--alpha", "8", "-o", "folded.safetensors")
  assert "note: that its alpha is 8 is the user's word" in printed
  folded = store.read("folded.safetensors")[0]
  for name, leaf in numpy_fold(leaves, 8.0).items():
    np.testing.assert_allclose(folded[name], leaf, rtol=2e-7)
  tpv("diff", *two, "--alpha", "8", "-o", "v.safetensors")
  tpv("diff", "folded.safetensors", two[1], "--alpha", "8", "-o", "mixed.safetensors")
  assert "'folded.safetensors' has no alpha: only the parameters" in refused(
    "fold", "folded.safetensors", "--alpha", "8", "-o", "x.safetensors"
  )
  known = store.read("v.safetensors")[1]
  assert known.initial_digest == (
    store.read("runs/sst2/best_prompt.safetensors")[1].initial_folded_digest
  )
  assert "that its alpha is 8 is the user's word" in known.notes
  tpv("diff", *two, "--space", "factor", "-o", "f.safetensors")  # needs no alpha
  assert store.read("f.safetensors")[1].alpha is None


def test_inspect_writes_pictures_numbers_and_a_table(ept_runs, tpv, refused):
  command = ("inspect", "runs/sst2", "runs/rte", "runs/trec", "-o", "pictures")
  lines = tpv(*command).splitlines()
  assert [line.split()[0] for line in lines[1:]] == (
    ["start", "sst2", "rte", "start", "trec"]
  )
  assert lines[0].split()[:6] == ["gate", "1", "gate", "2", "entropy", "gamma"]
  assert len(set(map(len, lines))) == 1
  names = ["fusion.png", "gate.png", "inspection.json"]
  assert sorted(path.name for path in pathlib.Path("pictures").iterdir()) == names
  assert "exists and was left as it is" in refused(*command)
  tpv(*command, "--overwrite", "--which", "last")
  content = json.loads(pathlib.Path("pictures/inspection.json").read_text())
  digest = identity.prompt_digest(store.read("runs/rte/last_prompt.safetensors")[0])
  assert content["prompts"][2]["digest"] == digest


def test_inspect_says_where_there_is_nothing_to_see(ept_runs, make_run, tpv, refused):
  make_run("runs/plain")
  tpv("fold", "runs/sst2", "-o", "folded.safetensors")
  tpv("diff", "runs/sst2", "-o", "v.safetensors")
  tpv("negate", "v.safetensors", "-o", "w.safetensors")
  for path, expected in {
    "runs/plain": "is a plain prompt, which has neither gate nor fusion",
    "folded.safetensors": "is folded, and its gate and fusion went into its prompt",
    "w.safetensors": "is a vector, and a difference has no gate",
  }.items():
    printed = refused("inspect", path, "-o", "pictures")
    assert expected in printed
    assert "Give the run folder of an EPT prompt" in printed
  assert "is a file. Name a folder" in refused(
    "inspect", "runs/sst2", "-o", "v.safetensors"
  )


def test_a_backbone_file_names_the_backbone_of_a_checkpoint(tpv, refused, monkeypatch):
  from tpv_jax.backbones import loading

  real, kept = loading.load_backbone, []

  def load(*arguments, **named):
    loaded = real(*arguments, **named)
    kept.extend(identity.flatten(loaded.params).values())
    return loaded

  monkeypatch.setattr(loading, "load_backbone", load)

  initial = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  save_checkpoint("t5x/checkpoint_0", initial)
  save_checkpoint("t5x/checkpoint_9", initial + np.float32(0.5))
  flat = {"token_embedder/embedding": initial}
  loading.save_backbone("backbone.safetensors", flat, "my_t5")
  arguments = ("diff", "t5x/checkpoint_9", "t5x/checkpoint_0", "--backbone")
  tpv(*arguments, "backbone.safetensors", "-o", "v.safetensors")
  known = store.read("v.safetensors")[1]
  assert known.backbone_fingerprint == identity.backbone_fingerprint(flat)
  assert known.backbone_name == "my_t5"
  assert kept == [(4, 6)]  # Its one leaf was read, for the fingerprint, and let go.
  assert "none.safetensors" in refused(
    *arguments, "none.safetensors", "-o", "w.safetensors"
  )


def test_a_backbone_of_another_width_is_refused_wherever_one_is_named(
  make_run, refused
):
  from tpv_jax.backbones import loading

  prompt = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  np.save("start.npy", prompt)
  np.save("tuned.npy", prompt + np.float32(1))
  wide = {"token_embedder/embedding": np.zeros((9, 8), np.float32)}
  loading.save_backbone("wide.safetensors", wide, "wide_t5")
  run = make_run("wide")
  leaves = {"prompt": np.ones((4, 8), np.float32)}
  known = Provenance(kind="prompt", backbone_fingerprint="cd" * 32, steps=3)
  store.write(run / "best_prompt.safetensors", leaves, known, overwrite=True)
  for backbone, name in (("wide.safetensors", "wide_t5"), (str(run), "cdcdcdcdcdcd")):
    for command in (("import", "tuned.npy"), ("diff", "tuned.npy", "start.npy")):
      printed = refused(*command, "--backbone", backbone, "-o", "x.safetensors")
      assert "has rows of 6 features" in printed
      assert f"tokens of the backbone '{name}' have 8" in printed


def test_a_backbone_that_contradicts_the_prompt_is_refused(vectors, refused):
  printed = refused("diff", "runs/sst2", "--backbone", "c" * 64, "-o", "v.safetensors")
  assert "states another backbone (abababababab…) than --backbone (cccccccccccc…)" in (
    printed
  )


def test_what_does_not_belong_together_is_refused(vectors, refused):
  for arguments, expected in {
    ("sum", "sst2.safetensors", "trec.safetensors"): "different initial prompts",
    ("sum", "sst2.safetensors", "runs/rte"): "a vector is needed here",
    ("apply", "sst2.safetensors", "rte.safetensors"): "a prompt is needed here",
    ("diff", "runs/sst2", "runs/trec"): "was tuned from the initial prompt",
    ("scale", "sst2.safetensors", "nan"): "is not finite",
    ("scale", "sst2.safetensors", "-inf"): "is not finite",
    ("scale", "sst2.safetensors", "1e300"): "does not fit into fp32",
    ("sum", "sst2.safetensors", "-w", "1", "2"): "number of weights",
    ("merge", "sst2.safetensors", "--rule", "mean"): "no merge rule 'mean'",
    ("merge", "sst2.safetensors", "--t", "0.3"): "has no option 't'",
    ("merge", "sst2.safetensors", "--rule", "slerp"): "exactly 2 vectors",
    ("negate", "sst.safetensors"): "Did you mean 'sst2.safetensors'",
    ("diff", "runs/sst2", "--task", "rte"): "states its task terms itself",
  }.items():
    assert expected in refused(*arguments, "-o", "out.safetensors")


def test_a_wrong_call_is_one_line(vectors, refused):
  for arguments, expected in {
    (): "No verb was given",
    ("add",): "There is no verb 'add'",
    ("negate", "sst2.safetensors"): "required: -o/--output",
    ("scale", "sst2.safetensors", "x", "-o", "o.safetensors"): "'x' is not a number",
    ("show", "sst2.safetensors", "--jsn"): "unrecognized arguments: --jsn",
    ("show", "sst2.safetensors", "--which", "worst"): "invalid choice: 'worst'",
  }.items():
    printed = refused(*arguments)
    assert expected in printed
    assert "--help" in printed


def test_an_output_that_exists_is_refused_before_anything_is_read(
  vectors, tpv, refused
):
  printed = refused("sum", "none.safetensors", "-o", "rte.safetensors")
  assert "'rte.safetensors' exists and was left as it is" in printed
  tpv("negate", "sst2.safetensors", "-o", "rte.safetensors", "--overwrite")
  assert terms("rte.safetensors") == {"sst2": -1.0}
  tpv("negate", "rte.safetensors", "-o", "rte.safetensors", "--overwrite")
  assert terms("rte.safetensors") == {"sst2": 1.0}


def test_a_full_device_is_one_line_and_leaves_nothing(vectors, refused, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  before = pathlib.Path("rte.safetensors").read_bytes()
  for output in ("new.safetensors", "rte.safetensors"):
    printed = refused("negate", "sst2.safetensors", "-o", output, "--overwrite")
    assert "No space left on device" in printed
  assert pathlib.Path("rte.safetensors").read_bytes() == before


def test_debug_shows_the_trace(vectors, capsys):
  arguments = ["negate", "none.safetensors", "-o", "v.safetensors", "--debug"]
  assert cli.main(arguments) == 2
  printed = capsys.readouterr().err
  assert "Traceback" in printed
  assert "UserError: 'none.safetensors' does not exist" in printed


def test_a_fresh_process_does_the_same_and_sets_the_exit_code(vectors):
  done = fresh("sum", "sst2.safetensors", "rte.safetensors", "-o", "a.safetensors")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.startswith("Wrote the vector 'a.safetensors': sst2 + rte.\n")
  again = fresh("sum", "sst2.safetensors", "rte.safetensors", "-o", "a.safetensors")
  assert again.returncode == 2
  assert again.stderr.startswith("error: 'a.safetensors' exists")
  assert again.stderr.count("\n") == 1


def test_ascii_terminals_get_a_line_not_a_trace(vectors):
  arguments = ("sum", "sst2.safetensors", "trec.safetensors", "-o", "x.safetensors")
  done = fresh(*arguments, PYTHONIOENCODING="ascii")
  assert done.returncode == 2
  assert done.stderr.startswith("error: Cannot add")
  assert done.stderr.count("\n") == 1


FORBIDDEN = ("jax", "jaxlib", "tensorflow", "flax", "orbax", "seqio", "torch", "rich")


@pytest.mark.parametrize(
  "arguments",
  [
    ["--help"],
    ["train", "--help"],
    ["diff", "runs/sst2", "-o", "x.safetensors"],
    ["sum", "sst2.safetensors", "rte.safetensors", "-o", "x.safetensors"],
    ["merge", *["sst2.safetensors"] * 2, "--rule", "dare_ties", "-o", "x.safetensors"],
    ["negate", "sst2.safetensors", "-o", "x.safetensors"],
    ["scale", "sst2.safetensors", "2", "-o", "x.safetensors"],
    ["analogy", *["sst2.safetensors"] * 3, "-o", "x.safetensors"],
    ["apply", "sst2.safetensors", "runs/trec", "-o", "x.safetensors"],
    ["cosine", "sst2.safetensors", "runs/rte"],
    ["nearest", "sst2.safetensors", "runs"],
    ["conflicts", "sst2.safetensors", "runs/rte"],
    ["group", "runs", "-k", "2"],
    ["fold", "runs/rte", "-o", "x.safetensors"],
    ["show", "runs/rte"],
  ],
  ids=lambda arguments: arguments[0],
)
def test_no_verb_imports_jax_or_tensorflow(vectors, arguments):
  code = (
    "import sys\n"
    "from tpv_jax import cli\n"
    "code = cli.main(sys.argv[1:])\n"
    "loaded = {name.split('.')[0] for name in sys.modules}\n"
    f"sys.exit(code or str(sorted(loaded & set({FORBIDDEN!r}))))\n"
  )
  done = python("-c", code, *arguments)
  assert done.stderr == "[]\n"


def test_vectors_of_many_tasks_show_in_full(tpv, tmp_path):
  known = Provenance(
    kind="vector", terms=tuple(Term(f"task{i}", (-1.0) ** i) for i in range(20))
  )
  store.write("many.safetensors", {"prompt": np.ones((1, 2), np.float32)}, known)
  assert tpv("show", "many.safetensors").count("task") == 20


def test_a_merge_of_two_takes_under_0_4_seconds_of_the_processor(vectors):
  """Of the processor, as a busy machine makes anything take longer."""
  call = ("merge", "sst2.safetensors", "rte.safetensors", "--rule", "ties")
  used = []
  for _ in range(4):
    before = os.times()
    done = fresh(*call, "-o", "m.safetensors", "--overwrite")
    after = os.times()
    assert done.returncode == 0
    used.append(
      after.children_user
      + after.children_system
      - before.children_user
      - before.children_system
    )
  assert min(used) < 0.4, used


def test_text_of_a_file_does_nothing_to_a_terminal(tmp_path, capsys):
  hostile = "x\x1b]0;owned\x07\x1b[2J\nbackbone      forged\u202e\x9b31m"
  known = Provenance(
    kind="vector",
    terms=(Term(hostile, 1.0),),
    backbone_name=hostile,
    initial_digest="ab" * 32,
    versions={hostile: hostile},
    notes=(hostile,),
  )
  path = tmp_path / "v\x1b[2J\n.safetensors"
  store.write(path, {"prompt": np.ones((2, 3), np.float32)}, known)
  new = str(tmp_path / "new\x1b.safetensors")
  for command in (
    ["show", str(path)],
    ["show", str(path), "--json"],
    ["cosine", str(path), str(path)],
    ["negate", str(path), "-o", new],
    ["export", str(path), "--to", "npy", "-o", f"{new}.npy"],
    ["show", str(tmp_path / "no\x1b\n")],
  ):
    cli.main(command)
    printed = "".join(capsys.readouterr())
    assert printed, command
    assert not set("\x1b\x07\x9b\u202e") & set(printed), command
    assert not [x for x in printed.splitlines() if x.startswith("backbone      forged")]
