"""The state directory: records, the last observation of EC2, clocks.

``codec`` has the table of the kinds of records; ``kind_records`` reads, writes and removes those
of one kind, and knows what is not on disk.
``directory`` puts them together, and keeps them one process's.
"""
