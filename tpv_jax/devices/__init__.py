"""Meshes of devices, the partitioning of parameters over them, and several processes."""
