"""nftables: our table, and the rules and chains of other owners."""
