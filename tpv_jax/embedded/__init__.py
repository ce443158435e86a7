"""The embedded default: a tiny backbone, its language, and how it was pre-trained.

`lexicon` has the words, `grammar` the sentences and their labels, `pretraining` the
batches on which the backbone was pre-trained. Beside them lie `vocabulary.txt`,
`backbone.safetensors` and the model card, tpv_jax/embedded/MODEL_CARD.md. NumPy only,
except for `seqio_tasks`.
"""
