"""The CNI executable: records what a pod asks for, waits, prints what it was given.

It imports ``os``, ``socket`` and ``sys``, what is built into the interpreter (``errno``,
``time``), and nothing of the reconciler: a runtime starts it twice per pod, and every import is
paid each time.
"""
