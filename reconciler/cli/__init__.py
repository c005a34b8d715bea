"""The command line: ``commands`` are the doors, ``report`` prints outcomes."""
