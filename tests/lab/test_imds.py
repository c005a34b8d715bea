"""The lab's instance metadata, asked as the node asks it."""

from __future__ import annotations

import io
from typing import Any

import pytest

from lab.imds import Imds


class Caller:
    """Asks with a source address, as packets have one."""

    def __init__(self, ec2: Any, source: str = "10.0.1.10") -> None:
        self._app = Imds(ec2.cloud)
        self._source = source
        self.token = ""
        self.headers: dict[str, str] = {}

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        status: list[str] = []
        told: list[tuple[str, str]] = []

        def start(line: str, headers: list[tuple[str, str]]) -> None:
            status.append(line)
            told.extend(headers)

        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": method,
            "REMOTE_ADDR": self._source,
            "wsgi.input": io.BytesIO(),
            "HTTP_X_AWS_EC2_METADATA_TOKEN": self.token,
        } | headers
        body = b"".join(self._app(environ, start))
        self.headers = dict(told)
        return int(status[0].split()[0]), body.decode()

    def sign_in(self, ttl: str = "60") -> tuple[int, str]:
        header = {"HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS": ttl}
        code, self.token = self.ask("/latest/api/token", "PUT", **header)
        return code, self.token

    def get(self, key: str) -> str:
        code, body = self.ask(f"/latest/meta-data/{key}")
        assert code == 200, key
        return body


@pytest.fixture
def imds(ec2: Any) -> Caller:
    caller = Caller(ec2)
    caller.sign_in()
    return caller


def test_nothing_is_told_without_a_token(ec2: Any) -> None:
    assert Caller(ec2).ask("/latest/meta-data/instance-id")[0] == 401


@pytest.mark.parametrize("ttl", ["", "0", "21601", "x"])
def test_a_token_needs_a_life(ec2: Any, ttl: str) -> None:
    assert Caller(ec2).sign_in(ttl)[0] == 400


def test_a_token_s_life_is_told_as_sdks_want_it(ec2: Any) -> None:
    caller = Caller(ec2)
    caller.sign_in("77")
    assert caller.headers["X-Aws-Ec2-Metadata-Token-Ttl-Seconds"] == "77"
    caller.ask("/latest/meta-data/mac")
    assert "X-Aws-Ec2-Metadata-Token-Ttl-Seconds" not in caller.headers


def test_what_does_not_exist_is_404(imds: Caller) -> None:
    assert imds.ask("/latest/meta-data/no-such-key")[0] == 404
    mac = imds.get("mac")
    assert imds.ask(f"/latest/meta-data/network/interfaces/macs/{mac}/ipv4-prefix")[0] == 404


def test_a_stranger_is_told_nothing(ec2: Any) -> None:
    stranger = Caller(ec2, "10.0.1.77")
    stranger.sign_in()
    assert stranger.ask("/latest/meta-data/instance-id")[0] == 404


def test_the_instance_is_known_by_any_of_its_addresses(ec2: Any, imds: Caller) -> None:
    eni = next(e for e in ec2.cloud.enis() if e.device_index == 0)
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni.eni_id, PrivateIpAddresses=["10.0.1.50"]
    )
    other = Caller(ec2, "10.0.1.50")
    other.sign_in()
    assert other.get("instance-id") == imds.get("instance-id") == ec2.instance_id


def test_enis_show_once_they_are_attached(ec2: Any, imds: Caller) -> None:
    made = ec2.client.create_network_interface(SubnetId=ec2.subnets["nodes-a"], Ipv4PrefixCount=1)[
        "NetworkInterface"
    ]
    mac = made["MacAddress"]
    assert mac not in imds.get("network/interfaces/macs/")
    ec2.client.attach_network_interface(
        NetworkInterfaceId=made["NetworkInterfaceId"], InstanceId=ec2.instance_id, DeviceIndex=1
    )
    assert f"{mac}/" in imds.get("network/interfaces/macs/").split()
    base = f"network/interfaces/macs/{mac}"
    assert imds.get(f"{base}/device-number") == "1"
    assert imds.get(f"{base}/interface-id") == made["NetworkInterfaceId"]
    assert imds.get(f"{base}/local-ipv4s") == made["PrivateIpAddress"]
    assert imds.get(f"{base}/ipv4-prefix") == "10.0.1.16/28"
    assert imds.get(f"{base}/vpc-ipv4-cidr-blocks").split() == ["10.0.0.0/16", "100.64.0.0/16"]


def test_lists_can_be_cut_short(ec2: Any, imds: Caller) -> None:
    eni = next(e for e in ec2.cloud.enis() if e.device_index == 0)
    ec2.client.assign_private_ip_addresses(
        NetworkInterfaceId=eni.eni_id, SecondaryPrivateIpAddressCount=5
    )
    path = f"network/interfaces/macs/{eni.mac}/local-ipv4s"
    assert len(imds.get(path).split()) == 6
    ec2.cloud.faults.set(truncateImds=2)
    assert len(imds.get(path).split()) == 2
