"""The profile of a run's steps; needs JAX, not T5X."""

import pytest

from tpv_jax.core.errors import UserError
from tpv_jax.t5x import profiling


def traces(folder):
  return list(folder.rglob("*.xplane.pb"))


def test_the_steps_that_were_asked_for_are_traced(tmp_path):
  profile = profiling.Profile([4, 5], tmp_path)
  begun = []
  for batch in profile.watch(iter(range(3, 8)), done=2):
    begun.append((batch, profile._begun, bool(traces(tmp_path))))
  assert [(batch, traced) for batch, traced, _ in begun] == [
    *((3, False), (4, True), (5, True)),
    *((6, False), (7, False)),
  ]
  assert [written for *_, written in begun] == [False, False, False, True, True]
  assert len(traces(tmp_path)) == 1


def test_a_trace_that_the_run_ends_in_is_written_and_none_where_there_was_none(
  tmp_path,
):
  profile = profiling.Profile((1, 100), tmp_path)
  assert list(profile.watch(iter("ab"), done=0)) == ["a", "b"]
  profile.stop()
  assert len(traces(tmp_path)) == 1
  profile.stop()
  late = profiling.Profile((1, 100), tmp_path / "late")
  assert list(late.watch(iter("ab"), done=100)) == ["a", "b"]
  late.stop()
  assert not traces(tmp_path / "late")


@pytest.mark.parametrize("steps", [[5, 4], [5], [1, 2, 3]])
def test_what_are_no_first_and_last_step_is_refused(tmp_path, steps):
  with pytest.raises(UserError, match=r"PROFILE_STEPS is .*the first and the last"):
    profiling.Profile(steps, tmp_path)
