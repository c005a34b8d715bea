"""One noun of the node each: value types, ``desire()``, ``plan()``.

Pure. A domain imports no other domain. Three modules are no domains: ``inputs`` is what every
``desire()`` may look at, ``snat`` the policy that the nat domain and ``trace`` share, ``left_out``
runs domains without a pod whose data makes one raise.
"""
