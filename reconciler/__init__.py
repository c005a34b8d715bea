"""The reconciler: observe, plan, apply.

Rooms, lowest first; a module imports only from rooms above its own in this list, and
``tests/test_house.py`` names each arrow:

* ``errors``: every exception, and who has to act on it.
* ``engine``: plan, comparison, rounds, backoff; knows no domain and no library.
* ``core``: what the pure rooms share: facts, attachments, the datapath's numbers.
* ``ipam``: what becomes of addresses and ENIs; pure.
* ``domains``: one noun of the node each: value types, ``desire()``, ``plan()``; pure.
* ``diagnostics``: what is said about a node: trace, audit, other agents on it; pure.
* ``targets``: input and output, one library each: ``observe()``, ``apply()``.
* ``migration``: taking over from amazon-vpc-cni-k8s.
* ``node``: the passes over one node.
* ``daemon``: the loops, and what others may ask of them.
* ``cli``: the command line.
"""
