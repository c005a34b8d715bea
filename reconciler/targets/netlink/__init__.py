"""The kernel's networking by netlink: sockets, messages, and what is made of them.

::

    message         header, attributes, sockets, answers, bounds: no family of messages
    ├── nfnetlink       netfilter's questions and transactions
    │   ├── nf_tables       numbers and form of nftables' messages
    │   └── ruleset         what a ruleset has, and changes of it
    └── tables          rtnetlink's tables, packed and decoded
        ├── entries         what a message says without being decoded
        ├── rtnetlink       the socket that reads tables and changes entries
        ├── decode          messages as the domains' objects
        ├── surplus         how much is read of what others may add
        ├── host, pods      the objects of the host, of pods' namespaces
        ├── queries         what else the host's tables are asked for
        ├── write           what a change of an object asks of the kernel
        └── target          all of that as one target

``namespaces`` is how a thread gets into one.
"""
