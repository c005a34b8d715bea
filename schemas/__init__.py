"""The desired-state document: its model, its loader, its generated JSON Schema."""
