"""What is said about a node, and never done: trace, audit, explain, other agents on it.

Pure: the value types for other owners' objects, and what follows from them. Nothing here plans a
change.
"""
