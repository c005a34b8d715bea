"""Leaves of the AWS SDK's data what EC2 needs: ``python3 cut_sdk.py SITE-PACKAGES``.

botocore ships the models of four hundred services, which is most of its size. What stays is EC2's
newest model, and what the credential chain may call to get credentials: STS for a role by a
web identity or another role, SSO and sign-in for people who exec into the container.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FILES = ("_retry", "endpoints", "partitions", "sdk-default-configuration")
"""What every client reads, without its endings."""

SERVICES = ("ec2", "signin", "sso", "sso-oidc", "sts")


def cut(site_packages: Path) -> None:
    """Remove what is not needed from botocore's and boto3's data.

    Raises:
        FileNotFoundError: there is no botocore, or something that is needed is not there.
    """
    data = site_packages / "botocore/data"
    for name in FILES:
        if not list(data.glob(f"{name}.json*")):
            raise FileNotFoundError(f"{data} has no {name}")
    for service in SERVICES:
        *old, newest = sorted(p for p in (data / service).iterdir() if p.is_dir())
        for version in old:
            shutil.rmtree(version)
        # An example says how a call is written, and is no part of the model.
        for examples in newest.glob("examples-*"):
            examples.unlink()
    for path in data.iterdir():
        if path.is_dir() and path.name not in SERVICES:
            shutil.rmtree(path)
        elif path.is_file() and path.name.partition(".")[0] not in FILES:
            path.unlink()
    # Models of boto3's "resources"; only its client is used.
    for directory in ("data", "examples"):
        shutil.rmtree(site_packages / "boto3" / directory, ignore_errors=True)


if __name__ == "__main__":
    cut(Path(sys.argv[1]))
