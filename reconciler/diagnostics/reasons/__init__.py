"""Every reason of a condition, a finding or a refusal: what it means, and what to do. Pure."""
