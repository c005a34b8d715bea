"""Reports about a node: trace, audit, explain, and what other owners have that hurts us.

Pure: the value types for other owners' objects, and what follows from them. Nothing here plans a
change.
"""
