"""What all labs' servers, daemons and commands find the same.

The process of ``fork_server`` imports it once, and they are forked from it.
"""

from __future__ import annotations

import lab.server  # noqa: F401  # isort: skip

import gc
import importlib
import sys
from pathlib import Path

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.core.utils import get_service_model
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import create_backend_app

import reconciler.targets.ec2.caller  # noqa: F401
import schemas.apart  # noqa: F401
from lab.topology import REGION
from reconciler.cli.main import MODULES

# The fork server passes over a module that it cannot import, and is not given the path of whoever
# starts it (Python 3.11).
sys.path.insert(0, str(Path(__file__).parent))
import fork_server  # noqa: F401 - to have it read, like all the others

for _module in {*MODULES.values()} - {"lab.cli"}:
    importlib.import_module(_module)

# Moto reads every region's services for the list of regions; both it and the SDK read the model of
# EC2, and keep it.
_ = ec2_backends[DEFAULT_ACCOUNT_ID]
get_service_model("ec2")
create_backend_app("ec2")
boto3.client("ec2", region_name=REGION, aws_access_key_id="lab", aws_secret_access_key="lab")

gc.collect()
gc.freeze()  # what is here stays: to look at it again and again would be most of a lab's work
gc.set_threshold(20_000, 20, 50)
