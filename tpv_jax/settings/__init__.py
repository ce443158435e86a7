"""What the user sets: gin files and bindings read, and refused by name where nothing reads them.

The only room, with `t5x`, that imports gin.
"""
