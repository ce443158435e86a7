"""What the user sets: gin files and bindings, refused by name where nothing reads them.

The only room, with `cli` and `t5x`, that imports gin.
"""
