"""T5 in Flax: the network, its sizes, its decoding, and where its weights come from."""
