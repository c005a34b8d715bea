"""What every lab's server finds the same; the fork server of ``fork_server`` imports it once."""

from __future__ import annotations

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends

import lab.server  # noqa: F401 - to have it read
from lab.topology import REGION

# Moto reads every region's services for the list of regions, and the SDK the model of EC2.
_ = ec2_backends[DEFAULT_ACCOUNT_ID]
boto3.client("ec2", region_name=REGION, aws_access_key_id="lab", aws_secret_access_key="lab")
