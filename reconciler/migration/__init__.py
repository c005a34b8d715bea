"""Taking over a node from amazon-vpc-cni-k8s.

``takeover`` decides and is pure; nothing imports it before a document asks for the take-over.
What names the stock plugin's objects on any node is in ``diagnostics.stock_plugin``, the types
that both share are in ``diagnostics.stock_objects``, and ``targets.remains`` removes.
"""
