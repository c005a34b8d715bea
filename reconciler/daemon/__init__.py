"""The process that runs on a node: loops, requests, readiness, conditions, drift, watches, server.

Runs the passes of ``node`` and tells others about them. Decides nothing about addresses or the
kernel.

Which thread runs what, and which lock guards each field that two threads touch: ``threads.py``.
"""
