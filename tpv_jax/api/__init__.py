"""What `import tpv_jax as tpv` offers beside the algebra: the commands as functions.

They run the same code with the settings of the same gin files, so that a vector made here
and one made by a command add up.
"""
