"""Arrays in files: safetensors and Orbax checkpoints, read and written leaf by leaf."""
