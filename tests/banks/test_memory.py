"""What a bank needs of memory is counted before it trains, and nothing compiled twice."""

import types

import jax
import numpy as np
import pytest

from tpv_jax.banks import bank_steps, memory
from tpv_jax.core import identity
from tpv_jax.data import packing, row_fitting
from tpv_jax.devices import partitioning, processes

SHAPES = row_fitting.Shapes(row_fitting.Shape(4, 32, 8), row_fitting.Shape(1, 16, 4), 4)


def device(**stats):
  return types.SimpleNamespace(memory_stats=lambda: stats or None)


def test_an_accelerator_has_what_its_limit_leaves_and_the_fullest_counts():
  devices = [
    device(bytes_limit=8 * 2**30, bytes_in_use=2**30),
    device(bytes_limit=8 * 2**30, bytes_in_use=3 * 2**30),
  ]
  assert memory.available(devices) == 5 * 2**30
  assert memory.available(devices, limit=0.5) == 2**29


@pytest.mark.parametrize("count", [1, 4])
def test_the_devices_of_a_cpu_share_what_linux_says_is_free(count):
  with open("/proc/meminfo") as file:
    (free,) = (int(x.split()[1]) * 1024 for x in file if x.startswith("MemAvailable"))
  found = memory.available([device()] * count) * count
  assert found == pytest.approx(free, rel=0.2)  # Others come and go.


def test_the_need_of_a_bank_is_counted_and_its_calls_are_compiled_once(tiny):
  steps = bank_steps.build(tiny.plain_model, tiny.schedule, partitioning.make_mesh())
  trainable = {"prompt/prompt": np.ones((4, 16), np.float32)}
  frozen = identity.flatten(tiny.backbone.params)
  needs = {n: memory.need(steps, trainable, frozen, n, SHAPES) for n in (2, 6)}
  for prompts, need in needs.items():
    assert need.backbone == sum(leaf.nbytes for leaf in frozen.values())
    # The prompt and AdamW's two moments; the step, and AdamW's own count of it.
    assert need.prompts == prompts * (3 * 4 * 16 * 4 + 2 * 4)
    assert need.total == need.backbone + need.prompts + need.step
  # At least the folded prompt and the sum of its gradients for each of four more.
  assert needs[6].step - needs[2].step >= 4 * 2 * 4 * 16 * 4
  # At least what goes into the output layer, a row for each token of the vocabulary.
  assert needs[2].step > 4 * 8 * 32 * 4

  compiled = []

  def hear(event, duration_secs, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(event)

  items = packing.items(tiny.data(40).batch_at(0), 0)
  calls = packing.pack(items[:13], SHAPES)
  assert {shape for shape, _ in calls} == {SHAPES.wide, SHAPES.short}
  placed = {path: processes.put(x, steps.frozen[path]) for path, x in frozen.items()}
  stacked = {path: np.stack([leaf] * 2) for path, leaf in trainable.items()}
  state = steps.initialise(
    {path: processes.put(leaf, steps.stacked[path]) for path, leaf in stacked.items()}
  )
  jax.block_until_ready((placed, state))
  jax.monitoring.register_event_duration_secs_listener(hear)
  try:
    rates = np.ones(2, np.float32)
    features = [features for _, features in calls]
    jax.block_until_ready(bank_steps.train_step(steps, state, placed, features, rates))
  finally:
    jax.monitoring.unregister_event_duration_listener(hear)
  assert len(compiled) == 3  # fold, zeros and update: the calls were there.


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0.0 B"), (1023, "1023.0 B"), (1536, "1.5 KiB"), (3 * 2**40, "3072.00 GiB")],
)
def test_bytes_are_shown_in_the_unit_that_suits_them(count, text):
  assert memory.text(count) == text
