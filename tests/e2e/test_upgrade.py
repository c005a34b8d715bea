"""From what was shipped before to this tree's image and manifest, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.disturbance import Disturbance, disturb
from e2e.network import Network
from waiting import until

from lab.kubernetes import images
from lab.kubernetes.images import Release


@pytest.fixture(scope="module")
def earlier(network: Network) -> Iterator[Release]:
    """What the newest commit shipped that shipped something else; the nodes have its image."""
    release = images.earlier(network.say)
    if release is None:
        pytest.skip("no commit is known here that shipped something else")
    network.say(f"the earlier release is of {release.commit}")
    for node in network.nodes.values():
        node.load(release.archive)
    yield release
    network.cluster.deploy()
    network.rolled_out()
    until(network.daemons_ready, network.trouble, patience_s=120)


@pytest.fixture(scope="module")
def rollback(network: Network, earlier: Release) -> Disturbance:
    """From this tree's release to the earlier one."""

    def go_back() -> None:
        network.cluster.deploy(rendered=earlier.manifest, image=earlier.image)
        network.rolled_out()

    seen = disturb(network, "rollback to the image of the commit before", go_back)
    assert _images(network) == {earlier.image}
    return seen


@pytest.fixture(scope="module")
def upgrade(network: Network, rollback: Disturbance) -> Disturbance:
    """From the earlier release to this tree's."""

    def go_on() -> None:
        network.cluster.deploy()
        network.rolled_out()

    seen = disturb(network, "upgrade from the image of the commit before", go_on)
    assert _images(network) == {images.RECONCILER}
    return seen


def _images(network: Network) -> set[str]:
    """Return the images that the reconcilers run."""
    return {s["image"] for d in network.daemons() for s in d["status"]["containerStatuses"]}


def test_a_rollback_cuts_no_connection(rollback: Disturbance) -> None:
    assert rollback.cut == ()


def test_a_rollback_fails_no_add(rollback: Disturbance) -> None:
    assert rollback.failed == 0, rollback.reasons


def test_an_upgrade_cuts_no_connection(upgrade: Disturbance) -> None:
    assert upgrade.cut == ()


def test_an_upgrade_fails_no_add(upgrade: Disturbance) -> None:
    assert upgrade.failed == 0, upgrade.reasons
