"""What stands beneath each goal: the least that is left if nothing else were done."""
