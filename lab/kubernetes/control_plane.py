"""The control plane: etcd, API server, controllers and scheduler, as processes of one instance."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from lab.kubernetes.api import Api
from lab.kubernetes.cgroups import PREFIX, Group
from lab.kubernetes.machine import ENVIRONMENT
from lab.kubernetes.places import (
    ADMINISTRATOR,
    API,
    API_PORT,
    CONTROL,
    CONTROL_ADDRESS,
    SERVICE_CIDR,
    USERS,
    Places,
)
from lab.lifecycle import Lab

START_S = 120.0
"""Seconds for the API server to be ready, on a machine that is busy."""

ETCD = "127.0.0.1:2379"


class ControlPlaneError(Exception):
    """The control plane did not start; carries the end of a log."""


class ControlPlane:
    """The processes, and the credentials of those who talk to them."""

    def __init__(self, lab: Lab, places: Places, programs: Path) -> None:
        self._lab = lab
        self._places = places
        self._programs = programs
        self._group = Group(f"{PREFIX}{lab.names.lab}/{CONTROL}")
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start it, and wait until the API server is ready.

        Raises:
            ControlPlaneError: it is not.
        """
        directory = self._places.control
        directory.mkdir(parents=True)
        self._group.make()
        tokens = {user: secrets.token_hex(16) for user in USERS}
        lines = [f'{token},{user},{user},"{USERS[user]}"' for user, token in tokens.items()]
        (directory / "tokens.csv").write_text("\n".join(lines) + "\n")
        _write_key(directory / "accounts.key")
        for user, token in tokens.items():
            self._places.kubeconfig(user).write_text(_kubeconfig(user, token, self._places))
        self._spawn("etcd", _etcd(directory))
        self._spawn("kube-apiserver", _apiserver(directory, self._places))
        self._wait(Api(self._lab, tokens[ADMINISTRATOR]))
        self._spawn("kube-controller-manager", _controllers(directory, self._places))
        self._spawn("kube-scheduler", _scheduler(self._places))

    def stop(self) -> None:
        """End it."""
        self._group.remove()
        for process in self._processes:
            process.wait()
        self._processes.clear()

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Have a component hang: it keeps its connections, and answers nothing."""
        self._signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(name, signal.SIGCONT)

    def api(self) -> Api:
        """Return a connection as the administrator."""
        body = yaml.safe_load(self._places.kubeconfig(ADMINISTRATOR).read_text())
        return Api(self._lab, body["users"][0]["user"]["token"])

    def log(self, name: str) -> str:
        """Return the end of a component's log."""
        return (self._places.control / f"{name}.log").read_text(errors="replace")[-3000:]

    def _spawn(self, name: str, options: Mapping[str, str]) -> None:
        words = [str(self._programs / name)]
        words += [f"--{option}={value}" for option, value in options.items()]
        with (self._places.control / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._group.prefix(), *self._lab.command(CONTROL, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        self._processes.append(process)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for pid in self._group.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if Path(os.fsdecode(words[0])).name == name:
                os.kill(pid, number)

    def _wait(self, api: Api) -> None:
        deadline = time.monotonic() + START_S
        while not api.is_ready():
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"kube-apiserver:\n{self.log('kube-apiserver')}")
            time.sleep(0.1)


def _etcd(directory: Path) -> dict[str, str]:
    return {
        "data-dir": f"{directory}/etcd",
        "listen-client-urls": f"http://{ETCD}",
        "advertise-client-urls": f"http://{ETCD}",
        "listen-peer-urls": "http://127.0.0.1:0",
        # A cluster does not outlive its machine, so nothing has to be on the disk.
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }


def _apiserver(directory: Path, places: Places) -> dict[str, str]:
    return {
        "etcd-servers": f"http://{ETCD}",
        "secure-port": str(API_PORT),
        "advertise-address": str(CONTROL_ADDRESS),
        "cert-dir": str(places.authority.parent),
        "token-auth-file": f"{directory}/tokens.csv",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-cluster-ip-range": SERVICE_CIDR,
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": f"{directory}/accounts.key",
        "service-account-signing-key-file": f"{directory}/accounts.key",
        "kubelet-preferred-address-types": "InternalIP",
    }


def _controllers(directory: Path, places: Places) -> dict[str, str]:
    return {
        "kubeconfig": str(places.kubeconfig("system:kube-controller-manager")),
        "use-service-account-credentials": "true",
        "service-account-private-key-file": f"{directory}/accounts.key",
        "root-ca-file": str(places.authority),
        "leader-elect": "false",
    }


def _scheduler(places: Places) -> dict[str, str]:
    return {
        "kubeconfig": str(places.kubeconfig("system:kube-scheduler")),
        "leader-elect": "false",
    }


def _write_key(path: Path) -> None:
    """Write a key that service accounts' tokens are signed with."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    body = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(body)


def _kubeconfig(user: str, token: str, places: Places) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "lab",
                "cluster": {"server": API, "certificate-authority": str(places.authority)},
            }
        ],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    return yaml.safe_dump(body)
