"""The settings of amazon-vpc-cni-k8s as our document: ``node-network import``.

``stock_settings`` reads what people have, ``translate`` decides and is pure, ``written`` writes
the document's text. ``stock_variables`` is the table of all settings, and ``docs/parity.md`` is
made from it. Nothing here looks at a node; taking one over is ``migration``.
"""
