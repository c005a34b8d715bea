"""``python -m schemas``: write the JSON Schemas beside the models."""

from __future__ import annotations

import json
from pathlib import Path

from schemas import diff, document, explain, status

SCHEMAS = {
    "node-network": document.json_schema,
    "diff": diff.json_schema,
    "explain": explain.json_schema,
    "status": status.json_schema,
}
"""By the name of the file."""

if __name__ == "__main__":
    for name, make in SCHEMAS.items():
        path = Path(__file__).with_name(f"{name}.schema.json")
        path.write_text(json.dumps(make(), indent=2) + "\n")
