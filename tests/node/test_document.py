"""Someone edits the document: a valid one is followed, an invalid one changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from waiting import until

pytestmark = pytest.mark.lab


def excluded(cluster: Any, cidr: str) -> bool:
    return cidr in cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout


def write_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def write_by_rename(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.replace(path)


@pytest.mark.parametrize("save", [write_in_place, write_by_rename])
def test_an_edit_is_followed_however_it_was_saved(cluster: Any, save: Any) -> None:
    before = cluster.config.read_text()
    save(cluster.config, before.replace("excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]"))
    until(lambda: excluded(cluster, "192.0.2.0/24"))
    save(cluster.config, before)
    until(lambda: not excluded(cluster, "192.0.2.0/24"))


def test_a_configmaps_swap_of_its_data_link_is_followed(idle: Any, tmp_path: Path) -> None:
    """Kubelet writes a new directory and renames the ``..data`` link over the old one."""
    mount = tmp_path / "mount"
    text = idle.config.read_text()

    def publish(version: str, content: str) -> None:
        (mount / version).mkdir(parents=True)
        (mount / version / "node-network.yaml").write_text(content)
        (mount / "..data_tmp").symlink_to(version)
        (mount / "..data_tmp").rename(mount / "..data")

    publish("..1", text)
    (mount / "node-network.yaml").symlink_to("..data/node-network.yaml")
    idle.config = mount / "node-network.yaml"
    idle.start()
    publish("..2", text.replace("excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]"))
    until(lambda: excluded(idle, "192.0.2.0/24"))


def test_an_invalid_edit_is_refused_shown_and_changes_nothing(cluster: Any) -> None:
    before = cluster.config.read_text()
    ruleset = cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    generation = cluster.status()["document"]["generation"]
    cluster.config.write_text(before.replace("mode: node", "mode: nobody"))
    where = f"{cluster.config}:5:9: snat.mode"
    until(lambda: where in (cluster.status()["document"]["refused"] or ""))
    assert cluster.status()["document"]["generation"] == generation
    assert "refused" in cluster.command("node1", "status").stdout
    assert cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout == ruleset
    with cluster.pods(1):
        pass  # the last good document still serves pods
    cluster.config.write_text(before)
    until(lambda: cluster.status()["document"]["refused"] is None)


def test_modes_and_mtu_follow_the_document(cluster: Any) -> None:
    before = cluster.config.read_text()
    with cluster.pods(1):
        cluster.config.write_text(
            before.replace("mode: node", "mode: external") + "eni: {mtu: 1500}\n"
        )
        until(
            lambda: "snat ip to" not in cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
        )
        until(lambda: "mtu 9001" not in cluster.ip("link"))
        until(lambda: cluster.status()["settled"])
        cluster.config.write_text(before)
        until(lambda: "snat ip to" in cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout)
        until(lambda: "mtu 1500" not in cluster.ip("link"))
        until(lambda: cluster.status()["settled"])
