"""Tasks, vocabularies, batches and metrics: NumPy in, NumPy out.

Only `seqio_tasks` imports JAX, TensorFlow or seqio.
"""
