"""The kernel's networking by netlink.

``message`` knows header, attributes, sockets and bounds, ``namespaces`` how a thread gets into
one. Upon them stand two families: ``nfnetlink``, ``nf_tables``, ``ruleset``; and ``tables``
(packing and decoding), ``rtnetlink`` (the socket), ``entries`` (which are taken), ``decode`` (as
objects), ``read``, ``queries``, ``write`` and ``target``.
"""
