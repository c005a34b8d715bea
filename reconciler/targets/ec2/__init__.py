"""EC2: what an instance has, and the calls that change it, in a process of their own.

``target`` looks, ``subnets`` describes subnets when something depends on them, ``changes`` makes
changes. All call by ``calls``, which knows the budget; ``caller`` is the other process. ``decode``
reads answers by the types in ``fields``.
"""
