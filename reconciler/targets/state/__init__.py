"""The state directory: records, the last observation of EC2, clocks.

``codec`` has the table of the kinds of records; ``kind_records`` reads, writes and removes those
of one kind, and knows what is not on disk; ``intent_records`` has what is different of intents.
``directory`` puts them together, and ``ownership`` keeps it one process's.
"""
