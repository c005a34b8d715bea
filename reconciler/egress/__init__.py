"""What the document's sources stand for (``@peering``, ``@routes``, prefix lists): pure.

``source.py`` merges observations, ``routes.py`` reads route tables, ``destinations.py`` says which
destinations see pods' addresses and why, and ``pace.py`` when EC2 is asked again.
"""
