#!/usr/bin/env bash
# Writes the three locks of Python's packages, with hashes: requirements.txt (all that a checkout
# needs), and of the same versions what the daemon needs and what its package is built with.
# Versions stay as far as pyproject.toml allows; --upgrade takes the newest. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/../.."

compile() {
    uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
        --no-annotate --output-file "$@"
}

compile requirements.txt --all-extras "$@" pyproject.toml
rm -f deploy/image/requirements.txt deploy/image/requirements-build.txt
compile deploy/image/requirements.txt --constraint requirements.txt pyproject.toml
compile deploy/image/requirements-build.txt --constraint requirements.txt - \
    < <(grep -o '"setuptools>=[0-9]*"' pyproject.toml | head -1 | tr -d '"')
