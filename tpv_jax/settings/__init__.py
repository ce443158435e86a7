"""Gin files and bindings of the user, refused by name if nothing reads them.

The only room, with `cli` and `t5x`, that imports gin.
"""
