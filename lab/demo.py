"""The story of ``make demo``: every claim is checked, and the first that fails ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import lifecycle, netns, pod
from lab.pod import Pod
from lab.topology import INTERNET_HOST, NODES, PEER_CIDR, PEER_HOST, Names
from lab.traffic import Receiver, Seen, Stream, probe
from reconciler.daemon.client import ask
from schemas.load import DocumentError, load, read

PODS = 20
NO_EXCLUSIONS = "excludeCIDRs: []"
NODE_ADDRESS = {"node1": "10.0.1.10", "node2": "10.0.2.10"}
VPC_HOST = "10.0.9.10"
CONVERGE_LIMIT_S = 60.0
NOTICE_LIMIT_S = 15.0
PLAIN_WIDTH = 160
"""Columns when the output is no terminal, where rich would assume 80."""


class ClaimError(Exception):
    """Something the demo says is not so."""


class Demo:
    """One run of the story."""

    def __init__(self, name: str, config: Path, console: Console) -> None:
        self._name = name
        self._console = console
        self._config_source = config
        self._pods: list[Pod] = []
        self._processes: list[subprocess.Popen[str]] = []

    def run(self) -> None:
        """Tell the story.

        Raises:
            ClaimError: a claim failed.
        """
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="node-network-demo-") as directory:
            self._config = Path(directory) / "node-network.yaml"
            shutil.copy(self._config_source, self._config)
            self._check_document()
            # Before anything is to be taken down again: a lab that is there already is not ours.
            self._lab = lifecycle.up(self._name)
            try:
                with self._step("1 a VPC on this machine, and a document that differs from it"):
                    self._converge()
                with self._step(f"2 {PODS} pods through the CNI executable"):
                    self._start_pods()
                with self._receivers():
                    with self._step("3 who sees which address, and by which ENI it left"):
                        self._show_traffic(peer_sees_pods=False)
                    with self._step(f"4 {PEER_CIDR} into snat.excludeCIDRs, while TCP is open"):
                        self._exclude_peer()
                        self._show_traffic(peer_sees_pods=True)
                    with self._step("5 somebody else breaks it"):
                        self._break_and_watch()
                with self._step("6 everything away"):
                    self._end_pods()
            finally:
                with lifecycle.undisturbed():
                    self._stop_reconcilers()
                    lifecycle.down(self._name)
        self._claim(not netns.names(f"nn-{self._name}-"), "no namespace is left")
        took = time.monotonic() - started
        self._console.print(f"\n[bold green]All claims held[/] in {took:.0f} s.")

    # -- 1 --------------------------------------------------------------------------------

    def _check_document(self) -> None:
        """See at once what step 4 will need."""
        document = load(read(self._config), str(self._config_source))
        self._require(
            document.snat.mode == "node" and self._excluding() != self._config.read_text(),
            f"{self._config_source}: the story needs snat.mode node and the line "
            f"'{NO_EXCLUSIONS}', which it edits",
        )

    def _excluding(self) -> str:
        """Return the document with the peer's range excluded."""
        text = self._config.read_text()
        return text.replace(NO_EXCLUSIONS, f'excludeCIDRs: ["{PEER_CIDR}"]')

    def _converge(self) -> None:
        before = self._diff("node1")
        failed = "" if before.returncode == 1 else f": {before.stderr}"
        self._claim(before.returncode == 1, f"before: diff exits 1{failed}")
        lines = before.stdout.splitlines()
        self._console.print(f"  node-network diff: {before.stderr.strip()}")
        for line in lines[:3]:
            self._console.print(f"    [dim]{line[:150]}[/]", highlight=False)
        self._console.print(f"    [dim]... {len(lines) - 3} more[/]")
        began = time.monotonic()
        for node in NODES:
            self._processes.append(
                self._lab.start(
                    node,
                    [*PROGRAM, "run", "-f", str(self._config)],
                    stderr=(self._lab.names.node_state(node) / "log").open("w"),
                )
            )
        for node in NODES:
            self._until(partial(self._in_sync, node), CONVERGE_LIMIT_S, f"{node} in sync")
        calls = self._lab.ask("calls")["calls"]
        mutating = {k: v for k, v in calls.items() if not k.startswith("Describe")}
        cost = ", ".join(f"{n} {a}" for a, n in sorted(mutating.items()))
        took = time.monotonic() - began
        self._say(f"both nodes converged {took:.1f} s later; EC2 calls: {cost}")
        after = self._diff("node1")
        empty = after.returncode == 0 and after.stdout == ""
        self._claim(empty, "after: diff prints nothing, exits 0")

    # -- 2 --------------------------------------------------------------------------------

    def _start_pods(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(pod.add, self._lab, "node1", f"p{i}") for i in range(PODS)]
            jobs.append(pool.submit(pod.add, self._lab, "node2", "q0"))
            self._pods = [job.result() for job in jobs]
        spread = Counter(p.device for p in self._pods if p.node == "node1")
        text = ", ".join(f"{count} on ENI {device}" for device, count in sorted(spread.items()))
        took = time.monotonic() - began
        self._say(f"{PODS} pods on node1 in {took:.1f} s: {text}; and one on node2")
        self._claim(len({p.address for p in self._pods}) == PODS + 1, "no address twice")
        wide = 0 in spread and len(spread) >= 3
        self._claim(wide, "primary and two or more secondary ENIs in use")

    # -- 3 and 4 --------------------------------------------------------------------------

    @contextmanager
    def _receivers(self) -> Iterator[None]:
        names = self._lab.names
        places = [names.namespace(part) for part in ("vpchost", "peer", "internet")]
        neighbours = [self._on(0)[1].namespace, self._other().namespace]
        receivers = [Receiver(place) for place in (*places, *neighbours)]
        try:
            yield
        finally:
            for receiver in receivers:
                receiver.close()

    def _show_traffic(self, *, peer_sees_pods: bool) -> None:
        table = Table("from", "to", "receiver saw", "left by", box=None, pad_edge=False)
        for device in (0, 1, 2):
            source = self._on(device)[0]
            for what, address, sees_pod in self._destinations(peer_sees_pods=peer_sees_pods):
                seen, left_by = self._measure(source, address)
                expected = source.address if sees_pod else NODE_ADDRESS["node1"]
                leaves = "" if what == "pod, same node" else device if sees_pod else 0
                table.add_row(
                    f"pod {source.address} (ENI {device})",
                    f"{what} {address}",
                    f"{seen} ({'the pod' if seen.source == source.address else 'the node'})",
                    "stays on the node" if left_by == "" else f"ENI {left_by}",
                )
                self._require(seen.source == expected, f"{what} sees {expected}, saw {seen}")
                self._require(left_by == leaves, f"{what}: leaves by {leaves}, not {left_by}")
        self._console.print(table)
        drops = self._lab.drops()
        self._claim(not drops, f"the fabric dropped nothing {drops or ''}")
        if not peer_sees_pods:
            self._say("the peered VPC sees the node's address: this is the problem users have")

    def _destinations(self, *, peer_sees_pods: bool) -> list[tuple[str, str, bool]]:
        return [
            ("pod, same node", self._on(0)[1].address, True),
            ("pod, other node", self._other().address, True),
            ("VPC host", VPC_HOST, True),
            ("peered VPC", str(PEER_HOST), peer_sees_pods),
            ("internet", str(INTERNET_HOST), False),
        ]

    def _measure(self, source: Pod, address: str) -> tuple[Seen, int | str]:
        self._lab.ask("forget")
        seen = probe(source.namespace, address)
        devices = {e["id"]: e["device"] for e in self._lab.enis("node1")}
        # By source as well: the last packets of an earlier connection may come late.
        flow = {"source": seen.source, "destination": address}
        to_there = [f["eni"] for f in self._lab.passed() if flow.items() <= f.items()]
        out = [devices[eni] for eni in to_there if eni in devices]
        return seen, out[0] if out else ""

    def _exclude_peer(self) -> None:
        source = self._on(1)[0]
        to_peer = Stream(source.namespace, str(PEER_HOST))
        to_internet = Stream(source.namespace, str(INTERNET_HOST))
        with to_peer, to_internet:
            edited = self._config.with_name("edited.yaml")
            edited.write_text(self._excluding())
            diff = self._diff("node1", edited)
            self._say(f"node-network diff: {diff.stdout.strip()}")
            one_line = diff.stdout.count("\n") == 1 and str(PEER_CIDR) in diff.stdout
            self._claim(one_line, "one element differs")
            began = time.monotonic()
            edited.replace(self._config)
            self._until(
                lambda: probe(source.namespace, str(PEER_HOST)).source == source.address,
                NOTICE_LIMIT_S,
                "the peer sees the pod",
            )
            took = time.monotonic() - began
            self._say(f"{took:.2f} s after the file was saved, the peer sees pods")
            self._claim(to_peer.exchange("still here"), "the open connection to it was not cut")
            self._claim(to_internet.exchange("here too"), "nor was the one to the internet")

    # -- 5 --------------------------------------------------------------------------------

    def _break_and_watch(self) -> None:
        breakages = {
            "ip rule delete priority 512": ["ip", "rule", "delete", "priority", "512"],
            "nft flush ruleset": ["nft", "flush", "ruleset"],
        }
        for text, argv in breakages.items():
            before = self._drift()
            began = time.monotonic()
            done = self._lab.run("node1", argv)
            self._require(done.returncode == 0, f"{text} {done.stderr}")
            self._until(partial(self._drifted, before), NOTICE_LIMIT_S, "repair", every_s=0.005)
            took = time.monotonic() - began
            self._require(self._in_sync("node1"), "in sync again")
            self._say(
                f"{text}: repaired and counted after {1000 * took:.0f} ms, "
                f"drift_repaired +{self._drift() - before:.0f}"
            )
        seen = probe(self._on(2)[0].namespace, str(INTERNET_HOST))
        self._claim(seen.source == NODE_ADDRESS["node1"], f"traffic flows as before ({seen})")

    def _drifted(self, before: float) -> bool:
        return self._drift() > before

    def _drift(self) -> float:
        """Read the counter from the socket: starting a process takes longer than a repair."""
        path = self._lab.names.node_state("node1") / "node-network.sock"
        lines = ask(path, {"do": "status"})["status"]["metrics"].splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("node_network_drift_repaired_total{")
        )

    # -- 6 --------------------------------------------------------------------------------

    def _end_pods(self) -> None:
        with ThreadPoolExecutor(8) as workers:
            list(workers.map(lambda p: pod.delete(self._lab, p.node, p.name), self._pods))
        self._until(
            lambda: not list(self._lab.names.node_state("node1").glob("attachments/*.json")),
            NOTICE_LIMIT_S,
            "every attachment released",
        )
        links = self._lab.run("node1", ["ip", "-o", "link"]).stdout
        self._claim(": nn" not in links, "no veth is left")
        routes = self._lab.run("node1", ["ip", "route", "show", "table", "512"]).stdout
        self._claim(not routes, "no pod route is left")
        self._claim(self._diff("node1").returncode == 0, "diff prints nothing")

    def _stop_reconcilers(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(timeout=20)

    # -- telling --------------------------------------------------------------------------

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self._console.print(f"\n[bold]{title}[/]")
        yield

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)

    def _claim(self, holds: bool, what: str) -> None:
        self._require(holds, what)
        self._console.print(f"  [green]✓[/] {what}", highlight=False)

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise ClaimError(what)

    def _until(
        self, holds: Callable[[], bool], limit_s: float, what: str, *, every_s: float = 0.05
    ) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > deadline:
                raise ClaimError(f"{what}: not within {limit_s:.0f} s\n{self._log()}")
            time.sleep(every_s)

    def _log(self) -> str:
        log = self._lab.names.node_state("node1") / "log"
        return "\n".join(log.read_text().splitlines()[-20:]) if log.exists() else ""

    def _in_sync(self, node: str) -> bool:
        return self._diff(node).returncode == 0

    def _diff(self, node: str, config: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self._lab.run(node, [*PROGRAM, "diff", "-f", str(config or self._config)])

    def _on(self, device: int) -> list[Pod]:
        return [p for p in self._pods if p.node == "node1" and p.device == device]

    def _other(self) -> Pod:
        return next(p for p in self._pods if p.node == "node2")


PROGRAM = [sys.executable, "-m", "reconciler"]


def run(name: str, config: Path) -> int:
    """Tell the story; return the exit status."""
    console = make_console()
    try:
        Demo(name, config, console).run()
    except (ClaimError, lifecycle.LabError, pod.PodError, DocumentError) as error:
        console.print("  [red]✗[/]", str(error), highlight=False)
        return 1
    except KeyboardInterrupt:
        left = netns.names(Names(name).prefix)
        gone = "the lab is gone" if not left else f"'node-network lab down --name {name}'"
        console.print(f"interrupted; {gone}")
        return 130
    return 0


def make_console() -> Console:
    """Return a console that does not wrap for a pipe."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=PLAIN_WIDTH)
