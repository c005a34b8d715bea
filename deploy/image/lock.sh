#!/usr/bin/env bash
# Writes the two locks of the image, at the versions that requirements.txt has. Needs uv.
# Run it whenever requirements.txt was made anew; a test compares.
set -euo pipefail
cd "$(dirname "$0")/../.."

compile() {
    uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
        --no-annotate --constraint requirements.txt --output-file "$1" "$2"
}

rm -f deploy/image/requirements.txt deploy/image/requirements-build.txt
compile deploy/image/requirements.txt pyproject.toml
compile deploy/image/requirements-build.txt - < <(grep -o '"setuptools>=[0-9]*"' pyproject.toml | head -1 | tr -d '"')
