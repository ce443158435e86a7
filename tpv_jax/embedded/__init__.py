"""The embedded default: a tiny backbone, the language it speaks, and how it came to be.

`lexicon` has the words, `grammar` the sentences and their labels, `pretraining` the
batches the backbone was pre-trained on. Beside them lie `vocabulary.txt`,
`backbone.safetensors` and the model card, tpv_jax/embedded/MODEL_CARD.md. NumPy only,
except for `seqio_tasks`.
"""
