"""What a document sets, and what of it is in force on a node, by its lines."""

from __future__ import annotations

import json

from schemas.apart import Here, Setting, answer
from schemas.settings import LONGEST, MOST

TEXT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 24}, cooldown: 30s}
snat:
  mode: node
  excludeCIDRs: [10.0.0.0/8, "@peering"]
eni: {tags: {team: net}}
overrides:
  - match: {instanceType: "m5.*"}
    set:
      warmPool: {enis: {warm: 1}}
      snat: {excludeCIDRs: [10.1.0.0/16]}
  - match: {zone: us-east-1b}
    set: {eni: {max: 2}}
  - match: {nodeName: "*"}
    set:
      snat: {mode: node, excludeCIDRs: null}
"""
NODE = {"instance_type": "m5.large", "zone": "us-east-1a", "node_name": "n"}


def test_each_setting_has_its_line_and_what_becomes_of_it_here() -> None:
    found = {(s.line, s.name): (s.value, s.state) for s in Here().describe(TEXT, NODE)}
    assert found[1, "apiVersion"] == ("node-network/v1alpha1", "in force")
    assert found[3, "warmPool.cooldown"] == ("30s", "in force")
    # A strategy drops the other one.
    assert found[3, "warmPool.addresses.minimum"] == ("24", "not in force here")
    assert found[5, "snat.mode"] == ("node", "changed in line 17")
    assert found[6, "snat.excludeCIDRs"] == ("10.0.0.0/8, @peering", "changed in line 17")
    assert found[7, "eni.tags.team"] == ("net", "in force")
    assert found[9, "overrides[0].match.instanceType"] == ("m5.*", "matches this node")
    assert found[11, "overrides[0].set.warmPool.enis.warm"] == ("1", "in force")
    assert found[12, "overrides[0].set.snat.excludeCIDRs"] == ("10.1.0.0/16", "changed in line 17")
    assert found[13, "overrides[1].match.zone"] == ("us-east-1b", "on other nodes")
    assert found[14, "overrides[1].set.eni.max"] == ("2", "on other nodes")
    assert found[17, "overrides[2].set.snat.mode"] == ("node", "in force")
    assert found[17, "overrides[2].set.snat.excludeCIDRs"] == ("null", "in force")
    assert [line for line, _ in found] == sorted(line for line, _ in found)


def test_the_other_process_says_the_same() -> None:
    told = json.loads(json.dumps(answer({"text": TEXT, "describe": NODE})))
    assert tuple(Setting(*s) for s in told["settings"]) == Here().describe(TEXT, NODE)


def test_settings_and_their_values_are_bounded() -> None:
    head = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
    cidrs = ", ".join(f"10.{n}.0.0/16" for n in range(200))
    types = "\n".join(f"  t{n}.large: {{enis: 3, addressesPerEni: 10}}" for n in range(300))
    text = f"{head}snat: {{excludeCIDRs: [{cidrs}]}}\ninstanceTypes:\n{types}\n"
    found = Here().describe(text, NODE)
    assert len(found) == MOST
    (listed,) = (s.value for s in found if s.name == "snat.excludeCIDRs")
    assert listed.endswith("... (200)")
    assert len(listed) <= LONGEST
