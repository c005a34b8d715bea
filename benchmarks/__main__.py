"""``make bench``: ADD and DEL end to end, beside Debian's ptp with host-local and ipMasq.

Interleaved, so that whatever else the machine does touches both. What travels to other machines is
the ratio, not the milliseconds.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import calls, forwarding
from lab import lifecycle, netns, pod
from lab.lifecycle import Lab
from reconciler.client import ask

ROUNDS = 40
PLUGINS = Path("/usr/lib/cni")
PACKAGES = ["containernetworking-plugins", "iptables"]
RESULTS = Path(__file__).with_name("results.md")
CONFIG = Path(__file__).parents[1] / "config/node-network.yaml"
SETTLE_LIMIT_S = 60.0

Times = dict[str, list[float]]


class Peer:
    """The reference plugins, run in a namespace of their own."""

    def __init__(self, namespace: str, data: Path) -> None:
        self._namespace = namespace
        self._config = {
            "cniVersion": "1.0.0",
            "name": "peer",
            "type": "ptp",
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(data),
                "ranges": [[{"subnet": "192.0.2.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }

    def call(self, verb: str, name: str, where: str) -> None:
        """Run the plugin once, as a runtime does."""
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": str(netns.path(where)),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
        }
        done = subprocess.run(
            ["nsenter", f"--net={netns.path(self._namespace)}", "--", str(PLUGINS / "ptp")],
            input=json.dumps(self._config),
            env=environment,
            text=True,
            check=False,
            capture_output=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the peer's {verb} of {name} failed: {done.stdout}{done.stderr}")


def main() -> None:
    """Measure and write the results."""
    _need_plugins()
    name = "bench"
    lifecycle.down(name)
    with tempfile.TemporaryDirectory(prefix="node-network-bench-") as directory:
        try:
            lab = lifecycle.up(name)
            netns.make(lab.names.namespace("pod-peerhost"))
            peer = Peer(lab.names.namespace("pod-peerhost"), Path(directory))
            log = (lab.names.node_state("node1") / "log").open("w")
            config = Path(directory) / "node-network.yaml"
            # More pods than the node has addresses come and go: they must not wait for a rest.
            config.write_text(CONFIG.read_text().replace("cooldown: 30s", "cooldown: 0s"))
            argv = [sys.executable, "-m", "reconciler", "run", "-f", str(config)]
            process = lab.start("node1", argv, stderr=log)
            _settle(lab)
            times = _measure(lab, peer)
            memory = _resident_mib(process.pid)
            process.terminate()
            process.wait()
            log.close()
        finally:
            lifecycle.down(name)
    RESULTS.write_text(_report(times, memory) + "\n".join(["", *calls.table(calls.measure()), ""]))
    forwarding.write(RESULTS)
    print(RESULTS.read_text())


def _measure(lab: Lab, peer: Peer) -> Times:
    times: Times = {"ADD": [], "DEL": [], "peer ADD": [], "peer DEL": []}
    for i in range(ROUNDS):
        print(f"\rround {i + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        name = f"b{i}"
        where = lab.names.namespace(f"pod-{name}")
        for verb in ("ADD", "DEL"):
            if verb == "ADD":
                netns.make(where)
            _time(times[verb], partial(pod.call, lab, "node1", name, verb))
        netns.remove(where)
        netns.make(where)
        for verb in ("ADD", "DEL"):
            _time(times[f"peer {verb}"], partial(peer.call, verb, name, where))
        netns.remove(where)
    print(file=sys.stderr)
    return times


def _time(into: list[float], what: Callable[[], object]) -> None:
    began = time.perf_counter()
    what()
    into.append(1000 * (time.perf_counter() - began))


def _settle(lab: Lab) -> None:
    path = lab.names.node_state("node1") / "node-network.sock"
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while True:
        if path.exists():
            status = ask(path, {"do": "status"})["status"]
            held = sum(e["addresses"] for e in status["enis"] if e["status"] == "attached")
            if status["settled"] and held >= 24:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the node did not settle")
        time.sleep(0.1)


def _resident_mib(pid: int) -> float:
    """Return resident memory in MiB; nsenter has become the reconciler by exec."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 1024


def _report(times: Times, memory: float) -> str:
    rows = []
    for verb in ("ADD", "DEL"):
        ours, theirs = times[verb], times[f"peer {verb}"]
        rows.append(
            f"| {verb} | {_p(ours, 50):.0f} / {_p(ours, 99):.0f} ms "
            f"| {_p(theirs, 50):.0f} / {_p(theirs, 99):.0f} ms "
            f"| {_p(ours, 50) / _p(theirs, 50):.2f} |"
        )
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`. Ratios travel, milliseconds do not.",
            "",
            f"{os.cpu_count()} cores, Linux {platform.release()}, Python "
            f"{platform.python_version()}; {ROUNDS} rounds, both sides interleaved in one run.",
            "",
            "| one pod, end to end | node-network p50 / p99 | ptp + host-local + ipMasq p50 / p99 "
            "| ratio of medians |",
            "|---|---|---|---|",
            *rows,
            "",
            "Both are measured from before the process starts until after it has ended.",
            "Ours runs as a Python process (`python -I -m cni`), theirs are static executables.",
            f"The reconciler's resident memory at the end: {memory:.0f} MiB, boto3 in full.",
            "",
        ]
    )


def _p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _need_plugins() -> None:
    if not (PLUGINS / "ptp").exists() or not shutil.which("iptables"):
        print("bench: installing", *PACKAGES, file=sys.stderr)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
