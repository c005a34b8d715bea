"""The passes over one node, and what each needs: the pool controller, cooldowns, the environment.

Puts domains and targets together. Knows no socket, no command line, and no thread but that of
cooldowns.
"""
