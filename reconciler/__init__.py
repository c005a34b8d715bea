"""The reconciler: observe, plan, apply.

Map of the house, lowest first; a file imports only from rooms before its own (a test enforces it):

* ``errors``: every exception, and who has to act on it.
* ``core``: pure and shared: plans, facts, pool arithmetic, the datapath's numbers.
* ``domains``: pure, one noun each: value types, ``desire()`` and ``plan()``.
* ``targets``: input and output, one library each: ``observe()`` and ``apply()``.
* ``engine``: rounds of desire, observe, plan, apply; knows no domain and no library.
* ``node``: one node: its targets, its domains, and the two kinds of pass over them.
* ``agent``: the daemon; ``conditions``, ``drift``: what it knows to be wrong, what it put right.
* ``server``, ``client``, ``triggers``, ``telemetry``, ``cli``: its doors.
"""
