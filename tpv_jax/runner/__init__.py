"""The standalone runner: training, evaluation and inference on any single host."""
