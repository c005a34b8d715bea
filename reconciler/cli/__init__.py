"""The command line: one module for each command, or two that belong together.

``main`` has their names and imports the module of the one that is run. ``options`` and ``host``
have what several of them take; ``report`` prints outcomes. Nothing here decides what a node gets.
"""
