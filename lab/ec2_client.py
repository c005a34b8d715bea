"""The SDK's client of the lab's EC2. It is imported where a client is opened: that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.topology import EC2_ENDPOINT, EC2_PORT, REGION

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client


def open_ec2() -> EC2Client:
    """Return a client, for a process in a namespace from which EC2 is reached."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=f"http://{EC2_ENDPOINT}:{EC2_PORT}",
        aws_access_key_id="lab",
        aws_secret_access_key="lab",
        config=Config(retries={"total_max_attempts": 1}),
    )
