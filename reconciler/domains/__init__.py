"""The pure half of each concern: value types, ``desire()`` and ``plan()``; one noun each."""
