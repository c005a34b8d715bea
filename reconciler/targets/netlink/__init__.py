"""rtnetlink and nfnetlink: codec, sockets, the kernel's network objects, namespaces."""
