"""An uninstallation looks for what every domain has, without a list of its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from node.test_passes import Simulation

from reconciler.engine.plan import Verb
from reconciler.errors import ObserveError
from reconciler.node.cleanup import Cleanup, staying

ROOT = Path(__file__).parents[2]

ELSEWHERE = {
    "attachment": "its records go with the state directory",
    "eni": "EC2 deletes what is attached with the instance, and gc what was left behind",
}
"""Domains that an uninstallation does not empty, and why."""


@pytest.fixture
def sim() -> Simulation:
    """A node with a pod."""
    made = Simulation()
    made.start_pod(1)
    made.turn()
    made.turn()
    return made


def made(sim: Simulation, tmp_path: Path) -> Cleanup:
    return Cleanup(sim.node, sim.document, tmp_path)


def test_every_domain_takes_part(sim: Simulation, tmp_path: Path) -> None:
    modules = {p.stem for p in (ROOT / "reconciler/domains").glob("*.py")} - {"__init__"}
    there = {m: vars(import_module(f"reconciler.domains.{m}")) for m in modules}
    domains = {m for m, names in there.items() if {"desire", "plan"} <= names.keys()}
    emptied = {d.name for d in made(sim, tmp_path).domains}
    assert domains - {name.replace("-", "_") for name in emptied} == {*ELSEWHERE}


def test_all_that_the_passes_have_made_goes_or_says_why_it_stays(
    sim: Simulation, tmp_path: Path
) -> None:
    cleanup = made(sim, tmp_path)
    shown = [str(a) for o in cleanup.plan().values() for a in o.plan.actions]
    assert sim.netlink._objects, "nothing is removed by a look"
    last = list(cleanup.remove())[-1]
    assert shown
    assert all(a.verb is Verb.DELETE for o in last.values() for a in o.plan.actions)
    assert [(n, o.undone, o.errors) for n, o in last.items() if not o.settled] == []
    stays = {o for o, _ in staying(last)}
    host = {o for o in sim.netlink._objects.values() if not getattr(o, "netns", "")}
    ours = {o for d in sim.node.domains.all for o in d.desire(cleanup._inputs)}
    assert host & ours <= stays
    assert not sim.environment.nft.observe()


def test_in_another_namespace_it_does_nothing(sim: Simulation, tmp_path: Path) -> None:
    sim.netlink.unplug(sim.node.known.identity().primary_mac)
    with pytest.raises(ObserveError, match="hostNetwork"):
        made(sim, tmp_path)
