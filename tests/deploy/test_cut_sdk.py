"""The SDK with its data cut to what EC2 needs, against the lab's EC2."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy.programs import DEPLOY, program

from reconciler.targets.ec2.caller import Ec2CallError, Subprocess

ROOT = DEPLOY.parent
MEGABYTE = 1 << 20


def size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the SDK as the image has it."""
    directory = tmp_path_factory.mktemp("site-packages")
    for name in ("boto3", "botocore"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(spec.origin).parent, directory / name, ignore=ignored)
    assert size(directory) > 20 * MEGABYTE
    program("image/cut_sdk.py").cut(directory)
    return directory


@pytest.fixture
def environment(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started finds the cut SDK first."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(cut), str(ROOT)]))


def ask(program: str) -> Any:
    """Run a program in an interpreter of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_a_quarter_of_a_megabyte_of_data_stays(cut: Path) -> None:
    assert size(cut / "botocore/data") < MEGABYTE / 4
    assert not (cut / "boto3/data").exists()
    # Twice: what is cut already is not damaged.
    before = size(cut)
    program("image/cut_sdk.py").cut(cut)
    assert size(cut) == before


def test_the_process_that_calls_ec2_works_with_it(ec2: Any, environment: None) -> None:
    call = Subprocess("us-east-1")
    try:
        subnets = call("DescribeSubnets", "describe_subnets", {})["Subnets"]
        assert {s["SubnetId"] for s in subnets} >= set(ec2.subnets.values())
        types = call(
            "DescribeInstanceTypes", "describe_instance_types", {"InstanceTypes": ["m5.large"]}
        )
        assert types["InstanceTypes"][0]["NetworkInfo"]["MaximumNetworkInterfaces"] == 3
        made = call(
            "CreateNetworkInterface",
            "create_network_interface",
            {"SubnetId": ec2.subnets["nodes-a"], "SecondaryPrivateIpAddressCount": 2},
        )["NetworkInterface"]
        assert len(made["PrivateIpAddresses"]) == 3
        gone = {"NetworkInterfaceId": made["NetworkInterfaceId"]}
        call("DeleteNetworkInterface", "delete_network_interface", gone)
        with pytest.raises(Ec2CallError, match=r"InvalidNetworkInterfaceID\.NotFound"):
            call("DeleteNetworkInterface", "delete_network_interface", gone)
    finally:
        call.close()


def test_every_method_that_is_called_is_in_the_model_that_stays(
    cut: Path, environment: None
) -> None:
    source = "".join(p.read_text() for p in (ROOT / "reconciler/targets/ec2").glob("*.py"))
    verbs = "describe|get|create|attach|detach|delete|modify|assign|unassign"
    methods = set(re.findall(rf'"((?:{verbs})_[a-z0-9_]+)"', source))
    methods.remove("delete_on_termination")  # a field of an ENI
    assert len(methods) > 10
    has, where = ask(
        "import boto3, botocore, json;"
        "c = boto3.session.Session().client('ec2', region_name='eu-central-1',"
        " aws_access_key_id='a', aws_secret_access_key='b');"
        f"print(json.dumps([[m for m in {sorted(methods)} if hasattr(c, m)], botocore.__file__]))"
    )
    assert Path(where).is_relative_to(cut)
    assert set(has) == methods
    called = {"".join(word.capitalize() for word in m.split("_")) for m in methods}
    assert called == {*program("image/cut_sdk.py").OPERATIONS}, "more stays than is called"


@pytest.mark.parametrize(
    "region", ["eu-central-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"]
)
def test_endpoints_of_all_partitions_are_known(environment: None, region: str) -> None:
    url = ask(
        "import boto3, json;"
        f"c = boto3.session.Session().client('ec2', region_name='{region}',"
        " aws_access_key_id='a', aws_secret_access_key='b');"
        "print(json.dumps(c.meta.endpoint_url))"
    )
    assert re.fullmatch(rf"https://ec2\.{region}\.(amazonaws\.(com|com\.cn|eu))", url)


def test_the_sdks_older_way_of_retrying_can_still_be_asked_for(
    environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    assert ask(
        "import boto3, json;"
        "c = boto3.session.Session().client('ec2', region_name='eu-central-1',"
        " aws_access_key_id='a', aws_secret_access_key='b');"
        "print(json.dumps(c.meta.config.retries['mode'] == 'legacy'))"
    )


@pytest.mark.parametrize("service", ["sts", "sso", "sso-oidc", "signin"])
def test_services_that_give_credentials_stay_and_are_called_where_they_were(
    cut: Path, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    program = (
        "import boto3, json, sys;"
        f"c = boto3.session.Session().client('{service}', region_name='us-gov-west-1',"
        " aws_access_key_id='a', aws_secret_access_key='b');"
        "print(json.dumps([c.meta.endpoint_url, len(c.meta.service_model.operation_names)]))"
    )
    whole = ask(program)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(cut), str(ROOT)]))
    assert ask(program) == whole
