"""Taking over a node from amazon-vpc-cni-k8s.

``takeover`` decides and is pure; ``migration`` keeps the last observation between passes. The
types that other rooms need are in ``core.predecessor``, the target is ``targets.remains``.
"""
