"""Where the world is touched: one library each, one door per library; nothing is decided here."""
