"""iptables of both backends: its programs, and its tables as the kernel keeps them."""
