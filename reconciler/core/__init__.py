"""What the pure rooms share: facts of the node, attachments, numbers and names of the datapath.

Values and functions without I/O. Nothing here belongs to one domain, and nothing here decides
what becomes of an address; that is ``ipam``.
"""
