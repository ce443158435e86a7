"""T5 (v1.0, v1.1, Flan, mT5) in Flax linen, with T5X's parameter tree."""
