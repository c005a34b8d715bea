"""``python -m schemas``: write the JSON Schema beside the models."""

from __future__ import annotations

import json
from pathlib import Path

from schemas.document import json_schema

SCHEMA = Path(__file__).with_name("node-network.schema.json")

if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(json_schema(), indent=2) + "\n")
