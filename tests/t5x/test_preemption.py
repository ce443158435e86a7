"""SIGTERM to one process, and the steps at which a stopped run goes on; without T5X."""

import os
import signal

import gin
import pytest

from tpv_jax.t5x import preemption


@pytest.fixture
def notice():
  found = signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  made = preemption.Notice()
  yield made
  made.close()
  signal.signal(signal.SIGTERM, found)


def test_one_sigterm_is_noted_and_another_one_would_end_the_process(notice, capfd):
  assert not notice.came()
  os.kill(os.getpid(), signal.SIGTERM)
  assert notice.came()
  assert notice.came()
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  told = "stopping after this step; once more to stop at once\n"
  assert capfd.readouterr().err == told


def test_after_training_sigterm_ends_the_process_again(notice):
  assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
  notice.close()
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_whoever_handles_sigterm_already_goes_on_to():
  def handler(number, frame):
    pass

  found = signal.signal(signal.SIGTERM, handler)
  try:
    preemption.Notice().close()
    assert signal.getsignal(signal.SIGTERM) is handler
  finally:
    signal.signal(signal.SIGTERM, found)


@pytest.fixture(scope="module")
def t5x_settings():
  """What gin knows of T5X's train, and of how it saves."""

  def train(total_steps, eval_period=0, relative_steps=None, gc_period=0):
    pass

  def save(period=None):
    pass

  known = gin.config._REGISTRY
  names = {"__main__.train": train, "t5x.utils.SaveCheckpointConfig": save}
  before = {name: known[name] for name in names if name in known}
  with gin.config.interactive_mode():  # Which lets another function have a name.
    for name, function in names.items():
      module, _, own = name.rpartition(".")
      gin.external_configurable(function, name=own, module=module)
  yield
  for name in names:
    known.pop(name)
  for name, found in before.items():
    known[name] = found


PERIODS = """
  PERIOD = 50
  __main__.train.total_steps = 500
  __main__.train.eval_period = %PERIOD
  t5x.utils.SaveCheckpointConfig.period = 100
"""


@pytest.mark.parametrize(
  ("more", "step", "expected"),
  [
    ("", 170, 150),
    ("", 150, 150),
    ("", 20, 0),
    ("__main__.train.gc_period = 25", 170, 150),
    ("__main__.train.gc_period = 25", 190, 175),
    ("PERIOD = 0", 170, 100),  # It only saves.
    ("__main__.train.total_steps = 170", 170, 170),  # It is done.
    ("__main__.train.total_steps = 160", 170, 170),  # T5X refuses it.
    ("__main__.train.relative_steps = 100", 170, 170),  # From there on.
  ],
)
def test_a_run_goes_on_from_where_an_unbroken_one_evaluated_or_saved_last(
  t5x_settings, more, step, expected
):
  gin.clear_config()
  gin.parse_config(PERIODS + more)
  assert preemption.last_boundary(step) == expected
  gin.clear_config()


@pytest.mark.parametrize(
  ("more", "evaluated"),
  [
    ("", [50, 100, 170]),
    ("PERIOD = 25", [25, 50, 75, 100, 170]),  # and saves less often.
    ("PERIOD = 0", []),
    ("PERIOD = None", []),
  ],
)
def test_a_run_is_evaluated_at_its_period_and_at_its_end_but_not_before_its_first_step(
  t5x_settings, more, evaluated
):
  gin.clear_config()
  gin.parse_config(PERIODS + "__main__.train.total_steps = 170\n" + more)
  found = [
    step for step in (0, 25, 50, 75, 99, 100, 170) if preemption.is_evaluated(step)
  ]
  assert found == evaluated
  gin.clear_config()


def test_without_gins_settings_t5x_is_told_the_step_itself():
  gin.clear_config()
  assert preemption.last_boundary(170) == 170
