"""Ratios against a peer, measured side by side in one run."""
