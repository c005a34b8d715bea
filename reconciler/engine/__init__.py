"""Plan, comparison, rounds, backoff.

Works on objects with keys, and on targets that observe and apply. Knows no domain and no library;
imports nothing of ours but ``errors``. Pure, except that it logs what no code expects.
"""
