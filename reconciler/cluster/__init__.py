"""What the cluster is told: the Node's condition, Events, and the start-up taint.

``report`` and ``events`` decide and are pure; ``api`` speaks to the API server.
"""
