"""The process that runs on a node: loops, requests, readiness, conditions, drift, watches, server.

Runs the passes of ``node`` and tells others about them. Decides nothing about addresses or the
kernel.
"""
