"""Training of one prompt: what it starts from, optimizers, the step, the loop, checkpoints."""
