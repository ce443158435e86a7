"""What every room uses: errors, files, identity, checks of settings, locks, the screen.

Nothing here imports JAX, TensorFlow or another room of this package.
"""
