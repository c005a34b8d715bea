"""The desired-state document: its model, its loader, its generated JSON Schema.

Attributes:
    checks: whether this process checks documents. A process that only holds one which another has
        checked says False before it imports the model, which then does without pydantic
        (``schemas.vocabulary``).
"""

checks = True
