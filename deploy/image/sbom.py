"""Writes a CycloneDX document of an image's packages to standard output; run inside of it.

``python3 sbom.py --lock requirements.txt --site-packages DIRECTORY``. Debian's packages are those
that dpkg knows. Python's are those that are installed, each of which must be in the lock at the
same version. There is no time and no random number in it: the same packages make the same file.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

OWN = "node-network"
FORMAT = "${binary:Package}\t${Version}\t${Architecture}\t${source:Package}\t${db:Status-Status}\n"

Component = dict[str, Any]


class NotLockedError(Exception):
    """A package is installed that the lock does not have."""


def main() -> None:
    """Print the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--site-packages", type=Path, required=True)
    options = parser.parse_args()
    release = dict(
        line.split("=", 1)
        for line in Path("/etc/os-release").read_text().splitlines()
        if "=" in line
    )
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", FORMAT], capture_output=True, text=True, check=True
    ).stdout
    version, python = python_components(options.site_packages, locked(options.lock.read_text()))
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": OWN, "version": version}},
        "components": [
            *debian_components(listed, release["VERSION_ID"].strip('"')),
            *python,
        ],
    }
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def locked(text: str) -> dict[str, str]:
    """Return the lock's versions by name."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def debian_components(listed: str, release: str) -> Iterator[Component]:
    """Yield what dpkg lists, in its order.

    Args:
        listed: lines in ``FORMAT``.
        release: Debian's number, such as "12".
    """
    for line in listed.splitlines():
        name, version, architecture, source, status = line.split("\t")
        if status != "installed":
            continue
        name = name.partition(":")[0]
        where = f"arch={architecture}&distro=debian-{release}"
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?{where}",
            "properties": [{"name": "debian:source", "value": source}],
        }


def python_components(site_packages: Path, lock: dict[str, str]) -> tuple[str, list[Component]]:
    """Return our own version, and the packages that are installed, by name.

    Raises:
        NotLockedError: one of them is not in the lock at its version.
    """
    found = {
        re.sub(r"[-_.]+", "-", each.name).lower(): each.version
        for each in metadata.distributions(path=[str(site_packages)])
    }
    own = found.pop(OWN)
    if strangers := sorted(found.items() - lock.items()):
        raise NotLockedError(f"installed, but not in the lock: {strangers}")
    return own, [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{quote(name)}@{quote(version, safe='')}",
        }
        for name, version in sorted(found.items())
    ]


if __name__ == "__main__":
    main()
