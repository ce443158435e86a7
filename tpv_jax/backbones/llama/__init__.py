"""The LLaMA family in Flax linen, with T5X's names for parameters where it has them."""
