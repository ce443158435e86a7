"""Tasks, vocabularies, batches and metrics: NumPy in, NumPy out.

Nothing here but `seqio_tasks` imports JAX, TensorFlow or seqio.
"""
