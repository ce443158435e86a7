"""Gin files and bindings of the user, refused by name if nothing reads them.

Only this room, `cli` and `t5x` import gin.
"""
