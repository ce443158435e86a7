"""Task prompt vectors on NumPy: neither JAX nor TensorFlow is imported here.

    from tpv_jax.formats import sources
    from tpv_jax.vectors import algebra, store

    initial = sources.load("runs/sst2", which="initial")
    vectors = [algebra.diff(sources.load(f"runs/{task}"), initial) for task in TASKS]
    prompt = algebra.apply(algebra.sum_vectors(vectors), initial)
    store.write("prompt.safetensors", prompt.leaves, prompt.provenance)

`formats.sources` loads, `algebra` says what may be combined and computes it by
`arithmetic`, `provenance` is what travels with the values, `store` is the file,
`inspection` looks into EPT prompts. DePT and EPT prompts are folded to what they do before
anything is computed, unless the factor space is asked for (`algebra`).
"""
