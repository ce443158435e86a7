"""The flags of one of several processes, as T5X's train spells them.

Does not import JAX, so that a command shows its help at once.
"""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `processes.join` reads."""
  parser.add_argument(
    "--multiprocess_gpu",
    action="store_true",
    help="one of several processes (GPU, CPU or TPU hosts); T5X's name for it",
  )
  parser.add_argument("--coordinator_address", help="HOST:PORT of process 0")
  parser.add_argument("--process_count", type=int, help="how many processes")
  parser.add_argument("--process_index", type=int, help="which one this is, from 0")
  parser.add_argument(
    "--initialization_timeout", type=int, help="seconds to wait for the others (300)"
  )
