"""Reading the document: what is accepted, what is refused, and where it says the fault is."""
# ruff: noqa: E501 - one case a line reads best

from __future__ import annotations

import os
import re
import socket
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from document_strategies import documents
from hypothesis import given
from hypothesis import strategies as st

from schemas.document import NodeNetwork
from schemas.load import DocumentError, dump, load, read
from schemas.pool import AddressTarget, InstanceLimits
from schemas.value import parse_duration, print_duration

ROOT = Path(__file__).parents[2]
HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


def problems(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(text, "f.yaml")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(p) for p in caught.value.problems]


def test_the_shipped_document_is_valid_and_says_what_the_demo_needs() -> None:
    path = ROOT / "config/node-network.yaml"
    document = load(path.read_text(), str(path))
    assert document.warm_pool.strategy == AddressTarget(warm=2, minimum=24)
    assert document.snat.mode == "node"
    assert document.snat.exclude_cidrs == ()
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schemas/node-network.schema.json"
    assert (path.parent / first.rpartition("=")[2]).resolve().exists()


def test_every_example_in_the_shipped_document_is_valid_once_its_comment_sign_is_gone() -> None:
    text = (ROOT / "config/node-network.yaml").read_text()
    examples = []
    # A key behind a comment sign, and the lines that stand deeper below it.
    for example in re.finditer(r"^( *)# ([a-zA-Z]+):.*\n(\1#   .*\n)*", text, re.MULTILINE):
        shown = re.sub("^( *)# ", r"\1", example[0], flags=re.MULTILINE)
        load(text[: example.start()] + shown + text[example.end() :], "f.yaml")
        examples.append(example[2])
    assert examples == [
        "cluster",
        "maxPods",
        "surplus",
        "max",
        "allocate",
        "usePrimary",
        "subnets",
        "subnetTags",
        "excludeSubnetTags",
        "subnetOrder",
        "securityGroups",
        "onlyCIDRs",
        "ports",
        "rules",
        "routing",
        "datapath",
        "mtu",
        "vethName",
        "spoofing",
        "metadata",
        "repair",
        "cni",
        "kubernetes",
        "families",
        "egressFamilies",
        "reservedAddresses",
        "podGroups",
        "instanceTypes",
        "takeOver",
        "overrides",
    ]


def test_the_document_in_the_daemonset_is_valid() -> None:
    manifests = yaml.safe_load_all((ROOT / "deploy/daemonset.yaml").read_text())
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap"]
    assert load(config["data"]["node-network.yaml"], "ConfigMap").warm_pool.strategy.minimum == 12


def test_bits_beyond_a_cidrs_length_make_no_difference() -> None:
    spellings = ("[10.1.2.3/16, 192.0.2.7]", "[10.1.0.0/16, 192.0.2.7/32]")
    one, other = (load(f"{HEAD}snat: {{excludeCIDRs: {text}}}\n", "f.yaml") for text in spellings)
    assert one == other


def test_the_defaults_are_whole() -> None:
    document = load(HEAD, "f.yaml")
    assert document.warm_pool.strategy == AddressTarget(warm=4, minimum=0, surplus=4)
    assert document.warm_pool.cooldown == timedelta(seconds=30)
    assert (document.cluster, document.max_pods) == ("", None)
    assert document.eni.max is None
    assert (document.eni.allocate, document.eni.use_primary) == ("addresses", True)
    assert (document.eni.subnets, document.eni.subnet_tags) == ((), ())
    assert document.eni.security_groups == ()
    assert document.instance_types == ()
    assert document.overrides == ()
    assert document.pod_mtu == 9001
    assert document.families == ("ipv4",)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("snat:\n  excludeCIDR: []\n", "4:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?"),
        ("warmpool: {}\n", "3:1: warmpool: unknown key; did you mean 'warmPool'?"),
        ("pods: {colour: 1}\n", "3:8: pods.colour: unknown key; known here: mtu, vethPrefix"),
        ("warm_pool: {}\n", "3:1: warm_pool: unknown key; did you mean 'warmPool'?"),
        ("warmPool: {warm: 2}\n", "3:12: warmPool.warm: unknown key; did you mean 'addresses.warm' or 'enis.warm' or 'prefixes.warm'?"),
        ("warmPool: {minimum: 2}\n", "3:12: warmPool.minimum: unknown key; did you mean 'addresses.minimum'?"),
        ("warmPool: {colour: 2}\n", "3:12: warmPool.colour: unknown key; known here: addresses, enis, prefixes, cooldown"),
        ("warmPool: {adresses: {}}\n", "3:12: warmPool.adresses: unknown key; did you mean 'addresses'?"),
        ("warmPool: {enis: {minimum: 1}}\n", "3:19: warmPool.enis.minimum: unknown key; known here: warm"),
        ("warmPool: {addresses: {warm: -1}}\n", "3:30: warmPool.addresses.warm: -1: must be at least 0"),
        ("warmPool: {addresses: {warm: 1001}}\n", "3:30: warmPool.addresses.warm: 1001: must be at most 1000"),
        ("warmPool: {addresses: {warm: '3'}}\n", "3:30: warmPool.addresses.warm: must be a number; remove the quotes"),
        ("warmPool: {addresses: {minimum: 10001}}\n", "3:33: warmPool.addresses.minimum: 10001: must be at most 10000"),
        ("warmPool: {addresses: {surplus: -1}}\n", "3:33: warmPool.addresses.surplus: -1: must be at least 0"),
        ("warmPool: {addresses: {surplus: 1001}}\n", "3:33: warmPool.addresses.surplus: 1001: must be at most 1000"),
        ("warmPool: {enis: {warm: 16}}\n", "3:25: warmPool.enis.warm: 16: must be at most 15"),
        ("warmPool: {prefixes: {warm: 101}}\n", "3:29: warmPool.prefixes.warm: 101: must be at most 100"),
        ("warmPool: {enis: }\n", "3:17: warmPool.enis: empty; remove the key, or give it a value"),
        ("warmPool: {addresses: {}, enis: {}}\n", "3:33: warmPool.enis: addresses and enis are given, but one strategy decides; remove all but one"),
        ("warmPool: {prefixes: {}, addresses: {}}\n", "3:22: warmPool.prefixes: addresses and prefixes are given, but one strategy decides; remove all but one"),
        ("warmPool: {enis: {}, prefixes: {}, addresses: {}}\n", "3:18: warmPool.enis: addresses and enis and prefixes are given, but one strategy decides; remove all but one"),
        ("warmPool: {prefixes: {}}\n", "3:22: warmPool.prefixes: counts /28 prefixes, but eni.allocate is addresses; set it to prefixes, or choose addresses or enis here"),
        ("maxPods: 0\n", "3:10: maxPods: 0: must be at least 1"),
        (f"snat: {{excludeCIDRs: [{', '.join(['10.0.0.1'] * 10_001)}]}}\n", "3:22: snat.excludeCIDRs: 10001 entries: must be at most 10000"),
        ("maxPods: 1001\n", "3:10: maxPods: 1001: must be at most 1000"),
        ("cluster: a_b\n", "3:10: cluster: 'a_b': must be 1 to 100 letters, digits and hyphens"),
        (f"cluster: {'a' * 101}\n", f"3:10: cluster: '{'a' * 101}': must be 1 to 100 letters, digits and hyphens"),
        ("mtu: 1500\n", "3:1: mtu: unknown key; did you mean 'eni.mtu' or 'pods.mtu'?"),
        ("eni: {allocate: blocks}\n", "3:17: eni.allocate: 'blocks': must be 'addresses' or 'prefixes'"),
        ("eni: {usePrimary: 1}\n", "3:19: eni.usePrimary: 1: must be true or false"),
        ("eni: {max: 1, usePrimary: false}\n", "3:27: eni.usePrimary: false with max 1 leaves no ENI for pods; raise max or use it"),
        ("eni: {max: 128}\n", "3:12: eni.max: 128: must be at most 127"),
        ("eni: {subnets: [subnet-1, sg-1]}\n", "3:27: eni.subnets[1]: 'sg-1': must be a subnet id like subnet-0123abcd"),
        ("eni: {subnets: [subnet-1, subnet-2, subnet-1]}\n", "3:16: eni.subnets: subnet-1 is named twice"),
        ("eni: {subnets: [subnet-1], subnetTags: {a: b}}\n", "3:40: eni.subnetTags: subnets names the subnets already; remove subnets or subnetTags"),
        ("eni: {subnetTags: {a: 1}}\n", "3:19: eni.subnetTags: tag 'a': names and values are text; put 1 in quotes"),
        ("eni: {subnetTags: [a]}\n", "3:19: eni.subnetTags: must be a mapping of names to values"),
        ("eni: {securityGroups: [SG-1]}\n", "3:24: eni.securityGroups[0]: 'SG-1': must be a security group id like sg-0123abcd"),
        ("eni: {securityGroups: [sg-1, sg-1]}\n", "3:23: eni.securityGroups: sg-1 is named twice"),
        (f"eni: {{securityGroups: [{', '.join(f'sg-{i}' for i in range(17))}]}}\n", "3:23: eni.securityGroups: 17 entries: must be at most 16"),
        ("instanceTypes: {m5: {enis: 3, addressesPerEni: 10}}\n", "3:17: instanceTypes.m5: 'm5': must be an instance type like m5.large"),
        ("instanceTypes: {m5.large: {enis: 3}}\n", "3:27: instanceTypes[m5.large].addressesPerEni: missing; it is required"),
        ("instanceTypes: {m5.large: {addressesPerEni: 3}}\n", "3:27: instanceTypes[m5.large].enis: missing; it is required"),
        ("instanceTypes: {m5.large: {enis: 0, addressesPerEni: 10}}\n", "3:34: instanceTypes[m5.large].enis: 0: must be at least 1"),
        ("instanceTypes: {m5.large: {enis: 128, addressesPerEni: 10}}\n", "3:34: instanceTypes[m5.large].enis: 128: must be at most 127"),
        ("instanceTypes: {m5.large: {enis: 3, addressesPerEni: 1}}\n", "3:54: instanceTypes[m5.large].addressesPerEni: 1: must be at least 2"),
        ("instanceTypes: {m5.large: {enis: 3, addressesPerEni: 251}}\n", "3:54: instanceTypes[m5.large].addressesPerEni: 251: must be at most 250"),
        ("instanceTypes: {m5.large: {eni: 3}}\n", "3:28: instanceTypes[m5.large].eni: unknown key; did you mean 'enis'?"),
        ("families: [ipv4, ipv4]\n", "3:11: families: ipv4 is named twice"),
        ("warmPool: {cooldown: 30}\n", "3:22: warmPool.cooldown: 30 is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("warmPool: {cooldown: 2h}\n", "3:22: warmPool.cooldown: must be from 0s to 1h"),
        ("reconcile: {resync: 10ms}\n", "3:21: reconcile.resync: must be from 1s to 1h"),
        ("snat: {excludeCIDRs: [here]}\n", "3:23: snat.excludeCIDRs[0]: 'here' is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: ['2001:db8::/32']}\n", "3:23: snat.excludeCIDRs[0]: 2001:db8::/32 is IPv6, but families has none of that version; remove it"),
        ("snat: {mode: external, excludeCIDRs: [192.0.2.0/24]}\n", "3:38: snat.excludeCIDRs: has no effect in mode external, where nothing is translated; remove it, or choose mode node"),
        ("eni: {mtu: 1500}\npods: {mtu: 1501}\n", "4:13: pods.mtu: 1501 does not fit into eni.mtu 1500; a pod's packets would be fragmented or dropped; lower pods.mtu"),
        ("eni: {tags: {aws:x: y}}\n", "3:13: eni.tags: tag 'aws:x': names that begin with aws: are Amazon's own"),
        ("eni: {tags: {node.k8s.amazonaws.com/instance_id: y}}\n", "3:13: eni.tags: tag 'node.k8s.amazonaws.com/instance_id': ownership is read from it; it is set for you"),
        ("eni: {tags: {x: 1}}\n", "3:13: eni.tags: tag 'x': names and values are text; put 1 in quotes"),
        ("pods: {vethPrefix: eni}\n", "3:20: pods.vethPrefix: eni is how amazon-vpc-cni-k8s names links after pods, and other software takes them for such; set vethName to pod, or choose another prefix"),
        ("maxPods: many\n", "3:10: maxPods: 'many': must be a whole number or 'auto'"),
        ("maxPods: 0\n", "3:10: maxPods: 0: must be at least 1"),
        ("maxPods: auto\n", "3:10: maxPods: auto is read from the Node object, which needs kubernetes.report: true; set that, or write kubelet's number here"),
        ("pods: {mtu: 600}\nfamilies: [ipv6]\n", "3:13: pods.mtu: 600 is too little for IPv6, which needs 1280 (RFC 8200); raise it, or remove ipv6 from families and egressFamilies"),
        ("pods: {vethPrefix: lo}\n", "3:20: pods.vethPrefix: 'lo' cannot be told from others' links: the loopback interface is called that"),
        ("pods: {vethPrefix: toolong}\n", "3:20: pods.vethPrefix: 'toolong': must be 1 to 4 lower-case letters and digits, a letter first"),
        ("families: [ipv6, ipv6]\n", "3:11: families: ipv6 is named twice"),
        ("egressFamilies: [ipv4]\n", "3:18: egressFamilies[0]: ipv4 is among families already, so pods reach it by their own addresses; remove it here or there"),
        ("snat:\n", "3:6: snat: empty; remove the key, or give it a value"),
        ("snat: here\n", "3:7: snat: must be a mapping of keys"),
        ("snat: {mode: nat}\n", "3:14: snat.mode: 'nat': must be 'node' or 'external'"),
        ("snat: {mode: external, onlyCIDRs: [192.0.2.0/24]}\n", "3:35: snat.onlyCIDRs: has no effect in mode external, where nothing is translated; remove it, or choose mode node"),
        ("snat: {onlyCIDRs: []}\n", "3:19: snat.onlyCIDRs: empty; name at least one"),
        ("kubernetes: {startupTaint: a/b}\n", "3:28: kubernetes.startupTaint: is removed only where the API server is spoken to; set report to true, or leave this out"),
        ("kubernetes: {report: true, startupTaint: a b}\n", "3:42: kubernetes.startupTaint: 'a b': must be the key of a taint, like node-network/agent-not-ready"),
        ("snat: {ports: fullyRandom}\n", "3:15: snat.ports: 'fullyRandom': must be 'fully-random', 'random' or 'sequential'"),
        ("routing: {externalServiceCIDRs: ['2001:db8::/32']}\n", "3:34: routing.externalServiceCIDRs[0]: 2001:db8::/32 is IPv6, but families has none of that version; remove it"),
        ("routing: {markMask: '0x7f800'}\n", "3:21: routing.markMask: 0x7f800 holds 0x4000 (kube-proxy marks what it will masquerade with it), 0x8000 (kubelet marks what it will drop with it), 0x2000 (the portmap plugin marks what it will masquerade with it); choose other bits"),
        ("routing: {markMask: '0x1fe000'}\n", "3:21: routing.markMask: 0x1fe000 holds 0x4000 (kube-proxy marks what it will masquerade with it), 0x8000 (kubelet marks what it will drop with it), 0x2000 (the portmap plugin marks what it will masquerade with it); choose other bits"),
        ("routing: {markMask: '0xfe'}\n", "3:21: routing.markMask: '0xfe': must be 8 adjacent bits of 32; write it as '0xff'"),
        ("routing: {markMask: '0xff00000000'}\n", "3:21: routing.markMask: '0xff00000000': must be 8 adjacent bits of 32; write it as '0xff'"),
        ("routing: {markMask: 0xff}\n", "3:21: routing.markMask: YAML reads 0xff as the number 255; write plain digits"),
        ("snat: {excludeCIDRs: ['@peer']}\n", "3:23: snat.excludeCIDRs[0]: '@peer' is no source; write @peering, @routes, @transit, @onprem, or a prefix list as pl-0a1b2c3d"),
        ("snat: {onlyCIDRs: [pl-x]}\n", "3:20: snat.onlyCIDRs[0]: 'pl-x' is no source; write @peering, @routes, @transit, @onprem, or a prefix list as pl-0a1b2c3d"),
        ("snat: {excludeCIDRs: [@peering]}\n", "3:23: not YAML: found character '@' that cannot start any token; put it in quotes, as \"@peering\""),
        ("families: [ipv6]\nsnat: {excludeCIDRs: ['@routes']}\n", "4:23: snat.excludeCIDRs[0]: @routes means IPv4, but families has none of that version; remove it"),
        (f"snat: {{excludeCIDRs: [{', '.join(f'pl-{n:08x}' for n in range(21))}]}}\n", "3:22: snat.excludeCIDRs: more than 20 prefix lists; put them into one"),
        ("snat: {mode: external, excludeCIDRs: ['@peering']}\n", "3:38: snat.excludeCIDRs: has no effect in mode external, where nothing is translated; remove it, or choose mode node"),
        ("snat: {excludeCIDRs: 10.1.0.0/16}\n", "3:22: snat.excludeCIDRs: must be a list; write [10.1.0.0/16]"),
        ("snat: {excludeCIDRs: [[10.1.0.0/16]]}\n", "3:23: snat.excludeCIDRs[0]: a list inside the list is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: [null]}\n", "3:23: snat.excludeCIDRs[0]: the entry is empty; remove it, or write a CIDR as 10.1.0.0/16"),
        ("snat: {excludeCIDRs: [10.1.0.0/0.0.255.255]}\n", "3:23: snat.excludeCIDRs[0]: '10.1.0.0/0.0.255.255' is no CIDR; write it as 10.1.0.0/16"),
        ("snat: {exclude_cidrs: []}\n", "3:8: snat.exclude_cidrs: unknown key; did you mean 'excludeCIDRs'?"),
        ("families: []\n", "3:11: families: empty; name at least one"),
        ("families: [ipv5]\n", "3:12: families[0]: 'ipv5': must be 'ipv4' or 'ipv6'"),
        # cni
        ("cni: {budget: 2m}\n", "3:15: cni.budget: must be from 1s to 110s"),
        ("cni: {versions: [1.0.0, 1.0.0]}\n", "3:17: cni.versions: 1.0.0 is named twice"),
        ("cni: {network: -x}\n", "3:16: cni.network: '-x': must be 1 to 63 letters, digits and _.-, not these first"),
        ("cni: {logFile: ../x}\n", "3:16: cni.logFile: '../x': must be journal, or an absolute path as /var/log/x.log"),
        ("cni: {chain: [portmap]}\n", "3:15: cni.chain[0]: must be a mapping of keys; write {type: portmap}"),
        ("cni: {chain: [{snat: true}]}\n", "3:15: cni.chain[0]: type: missing; it names the plugin's executable"),
        ("cni: {chain: [{type: /bin/sh}]}\n", "3:22: cni.chain[0].type: '/bin/sh': must be the name of an executable, without a path"),
        ("cni: {chain: [{type: node-network}]}\n", "3:22: cni.chain[0].type: node-network is first in every chain already; remove the entry"),
        ("cni: {chain: [{type: a, args: {}}]}\n", "3:31: cni.chain[0].args: the specification reserves it for runtimes; remove it"),
        ("cni: {chain: [{type: a, cni.dev/x: 1}]}\n", "3:15: cni.chain[0]: cni.dev/x is the runtime's to set; remove it"),
        ("cni: {chain: [{type: a, capabilities: {ips: 1}}]}\n", "3:45: cni.chain[0].capabilities.ips: 1: must be true or false"),
        ("cni: {chain: [{type: a, capabilities: [ips]}]}\n", "3:39: cni.chain[0].capabilities: must be a mapping of names to true or false"),
        ("pods: {vethPrefix: 5}\n", "3:20: pods.vethPrefix: must be text; put 5 in quotes"),
        ("warmPool: {cooldown: 9999999999999h}\n", "3:22: warmPool.cooldown: '9999999999999h' is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("warmPool: {cooldown: ٣s}\n", "3:22: warmPool.cooldown: '٣s' is no duration; write a number and a unit, as 30s, 2m or 1h"),
        ("maxPods: " + "9" * 5000 + "\n", "3:10: maxPods: a number of 5000 digits; nothing here is that large"),
        ("x: " + "[" * 3000 + "]" * 3000 + "\n", "3:35: nested more than 32 levels deep"),
        ("x: [" + "a, " * 16400 + "]\n", "3:49136: more than 16384 keys and values; write CIDRs as fewer, larger ones"),
        ("snat: {<<: {mode: node}}\n", "3:8: snat: merge keys are not supported; write the values out"),
        ('"a\\nb": 1\n', "3:1: 'a\\nb': unknown key"),
        ("eni: {subnets: [null]}\n", "3:17: eni.subnets[0]: empty; remove the entry, or give it a value"),
        ("eni: {tags: {x: }}\n", "3:13: eni.tags: tag 'x': names and values are text"),
        ("eni: {tags: {x: true}}\n", "3:13: eni.tags: tag 'x': names and values are text; put true in quotes"),
        ("warmPool: {cooldown: }\n", "3:21: warmPool.cooldown: empty; remove the key, or give it a value"),
        ("reconcile: {ec2Resync: 1s}\n", "3:24: reconcile.ec2Resync: must be from 10s to 1h"),
        ("snat: {mode: }\n", "3:13: snat.mode: empty; remove the key, or give it a value"),
        ("overrides: {}\n", "3:12: overrides: must be a list"),
        ("cluster: true\n", "3:10: cluster: must be text; put true in quotes"),
        ("eni: {usePrimary: 'no'}\n", "3:19: eni.usePrimary: 'no': must be true or false"),
        ("eni: {securityGroups: [sg-1, sg-1, sg-2, sg-2]}\n", "3:23: eni.securityGroups: sg-2 is named twice"),
        ("takeOver: aws\n", "3:11: takeOver: 'aws': must be 'none' or 'amazon-vpc-cni'"),
        ("takeOver: amazon-vpc-cni\nrouting: {markMask: '0xff0000'}\n", "3:11: takeOver: connections through the node's address carry 0x80, the mark of amazon-vpc-cni-k8s, and would be cut by another routing.markMask than 0xff; leave that out until they have ended"),
        # YAML 1.1
        ("snat: {mode: no}\n", "3:14: snat.mode: YAML reads no as a boolean; put the word in quotes if it is meant"),
        ("maxPods: 010\n", "3:10: maxPods: YAML reads 010 as the number 8; write plain digits"),
        ("maxPods: 1:30\n", "3:10: maxPods: YAML reads 1:30 as the number 90; write plain digits"),
        ("maxPods: 0x10\n", "3:10: maxPods: YAML reads 0x10 as the number 16; write plain digits"),
        ("maxPods: 1.5\n", "3:10: maxPods: YAML reads 1.5 as a float; numbers here are whole"),
        ("pods: {vethPrefix: 2026-01-01}\n", "3:20: pods.vethPrefix: YAML reads 2026-01-01 as a timestamp; nothing here is one; put it in quotes"),
        ("snat: {}\nsnat: {}\n", "4:1: snat: stands twice, first in line 3; remove one"),
        ("eni: {usePrimary: no}\n", "3:19: eni.usePrimary: YAML reads no as a boolean; put the word in quotes if it is meant"),
        ("snat: {1: x}\n", "3:8: snat: a key must be text; put '1' in quotes"),
        ("snat: {? [a] : x}\n", "3:10: snat: a key must be text; put [...] in quotes"),
        ('eni: {tags: {a: "\\ud800"}}\n', "3:17: '\\ud800' has half of a surrogate pair, which is no character"),
        ('eni: {tags: {"a\\udfff": b}}\n', "3:14: 'a\\udfff' has half of a surrogate pair, which is no character"),
        ("eni: &e {}\n", "3:6: anchors and aliases are not supported; write the value out"),
        ("overrides: [{match: {zone: *a}, set: {}}]\n", "3:28: anchors and aliases are not supported; write the value out, or put text that begins with & or * in quotes"),
        ("overrides: [{match: {zone: *.a}, set: {}}]\n", "3:29: not YAML: expected alphabetic or numeric character, but found '.', or put text that begins with & or * in quotes"),
        ("eni: !!set {a}\n", "3:6: eni: the tag tag:yaml.org,2002:set is not supported"),
        ("warmPool: !int 3\n", "3:11: warmPool: the tag !int is not supported"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line_its_column_and_its_key(body: str, expected: str) -> None:
    found = problems(HEAD + body)
    assert any(p.startswith(f"f.yaml:{expected}") or f"f.yaml:{expected}" == p for p in found), (
        found
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "f.yaml:1:1: the document is empty"),
        ("# nothing\n", "f.yaml:1:1: the document is empty"),
        ("- a\n", "f.yaml:1:1: the document is no mapping of keys"),
        ("kind: NodeNetwork\n", "f.yaml:1:1: apiVersion: missing; it is required"),
        (HEAD + "---\n" + HEAD, "f.yaml:3:1: not YAML: but found another document"),
        (HEAD + "\tx: 1\n", "f.yaml:3:1: not YAML: a tab; indent with spaces"),
        (HEAD + "snat: [\n", "f.yaml:4:1: not YAML: expected the node content"),
        (HEAD + "x: \x07\n", "f.yaml:1:1: not YAML: unacceptable character"),
        (HEAD.replace("v1alpha1", "v2"), "f.yaml:1:13: apiVersion: 'node-network/v2': must be 'node-network/v1alpha1'"),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused_as_one(text: str, expected: str) -> None:
    assert any(p.startswith(expected) for p in problems(text)), problems(text)


def test_faults_of_yaml_hide_none_of_the_documents() -> None:
    body = "snat:\n  excludeCIDR: []\n  mode: no\n"
    assert problems(HEAD + body) == [
        "f.yaml:4:3: snat.excludeCIDR: unknown key; did you mean 'excludeCIDRs'?",
        "f.yaml:5:9: snat.mode: YAML reads no as a boolean; put the word in quotes if it is meant",
    ]


def test_a_list_of_nothing_valid_is_not_called_empty() -> None:
    assert [p.split(": ")[1] for p in problems(HEAD + "families: [no, ipv5]\n")] == [
        "families[0]",
        "families[1]",
    ]


def test_a_key_that_stands_twice_makes_no_others_stand_twice() -> None:
    found = problems(HEAD + "snat: {mode: node}\nsnat: {mode: node}\n")
    assert found == ["f.yaml:4:1: snat: stands twice, first in line 3; remove one"]


def test_each_entry_of_a_list_and_each_tag_is_named_by_itself() -> None:
    body = "snat:\n  excludeCIDRs:\n  - 192.0.2.0/24\n  - 2001:db8::/32\n  - 2001:db8:1::/48\n"
    assert [p.split(": ")[0] for p in problems(HEAD + body)] == ["f.yaml:6:5", "f.yaml:7:5"]
    assert len(problems(HEAD + "eni: {tags: {aws:x: y, z: 1}}\n")) == 2
    assert len(problems(HEAD + "reconcile: {resync: 1ms, ec2Resync: 1ms}\n")) == 2


def test_a_file_that_cannot_be_read_is_an_error_of_the_document(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"kind: NodeNetwork\nx: \xff\n")
    for path, expected in (
        (bad, f"{bad}:2:4: not UTF-8: byte 0xff"),
        (tmp_path, f"{tmp_path}: cannot be read: is a directory"),
        (tmp_path / "none", f"{tmp_path / 'none'}: cannot be read: no such file or directory"),
    ):
        with pytest.raises(DocumentError) as caught:
            read(path)
        assert str(caught.value) == expected
    bad.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load(read(bad), "f.yaml") == load(HEAD, "f.yaml")


def test_nothing_in_a_documents_place_makes_its_reader_wait_or_read_without_end(
    tmp_path: Path,
) -> None:
    """Each of these has stopped the loop that serves pods, or eaten its memory."""
    fifo, socket_, huge, endless = (tmp_path / n for n in ("fifo", "socket", "huge", "endless"))
    os.mkfifo(fifo)
    huge.touch()
    os.truncate(huge, 1 << 40)
    endless.symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(socket_))
        for path, expected in (
            (fifo, f"{fifo}: cannot be read: it is a FIFO; put a file in its place"),
            (socket_, f"{socket_}: cannot be read: it is a socket; put a file in its place"),
            (endless, f"{endless}: cannot be read: it is a device; put a file in its place"),
            (huge, f"{huge}:1:1: larger than 1048576 bytes"),
        ):
            with pytest.raises(DocumentError) as caught:
                read(path)
            assert str(caught.value) == expected


def test_as_many_excluded_cidrs_as_nftables_takes_are_read() -> None:
    cidrs = "".join(f"  - 10.{i >> 8}.{i & 255}.0/24\n" for i in range(9980))
    document = load(HEAD + "snat:\n  excludeCIDRs:\n" + cidrs, "f.yaml")
    assert len(document.snat.exclude_cidrs) == 9980


def test_all_faults_are_named_at_once_in_the_order_of_the_file() -> None:
    body = "snat:\n  excludeCIDRs: [10.1.2.3/33, x]\npods: {mtu: 1}\nwarm: 1\n"
    assert [p.split(": ")[1] for p in problems(HEAD + body)] == [
        "snat.excludeCIDRs[0]",
        "snat.excludeCIDRs[1]",
        "pods.mtu",
        "warm",
    ]


def test_a_billion_laughs_is_refused_before_it_is_read() -> None:
    lines = ["a: &a [x, x]"] + [
        f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ]
    assert "anchors and aliases" in problems("\n".join(lines))[0]


@pytest.mark.parametrize("text", ["10.1.2.3", "10.1.2.3/32"])
def test_a_bare_address_means_that_address_alone(text: str) -> None:
    document = load(HEAD + f"snat: {{excludeCIDRs: [{text}]}}\n", "f.yaml")
    assert document.snat.exclude_cidrs == (ip_network("10.1.2.3/32"),)


def test_limits_of_instance_types_are_kept_by_name() -> None:
    body = "instanceTypes: {u-6tb1.metal: {enis: 5, addressesPerEni: 30}, a1.x: {enis: 1, addressesPerEni: 2}}\n"
    document = load(HEAD + body, "f.yaml")
    assert dict(document.instance_types)["u-6tb1.metal"] == InstanceLimits(
        enis=5, addresses_per_eni=30
    )
    assert [name for name, _ in document.instance_types] == ["a1.x", "u-6tb1.metal"]


def test_the_order_of_keys_in_a_mapping_makes_no_other_document() -> None:
    mapping = ["m5.large: {enis: 3, addressesPerEni: 10}", "a1.x: {enis: 1, addressesPerEni: 2}"]
    tags = ["a: b", "c: d"]

    def body(mapping: list[str], tags: list[str]) -> str:
        types, some = ", ".join(mapping), ", ".join(tags)
        override = f"[{{match: {{zone: a}}, set: {{eni: {{tags: {{{some}}}}}}}}}]"
        return (
            f"instanceTypes: {{{types}}}\neni: {{subnetTags: {{{some}}}}}\noverrides: {override}\n"
        )

    one = load(HEAD + body(mapping, tags), "f.yaml")
    other = load(HEAD + body(mapping[::-1], tags[::-1]), "f.yaml")
    assert (one, hash(one)) == (other, hash(other))


def test_subnets_keep_their_order_for_it_is_the_order_of_preference() -> None:
    document = load(HEAD + "eni: {subnets: [subnet-b, subnet-a]}\n", "f.yaml")
    assert document.eni.subnets == ("subnet-b", "subnet-a")


def test_subnets_may_be_selected_by_tags_that_we_may_not_set() -> None:
    body = "eni: {subnetTags: {aws:cloudformation:stack-name: vpc}}\n"
    assert load(HEAD + body, "f.yaml").eni.subnet_tags == (
        ("aws:cloudformation:stack-name", "vpc"),
    )


def test_the_normal_form_says_only_the_strategy_that_was_given() -> None:
    def pool(body: str) -> Any:
        return yaml.safe_load(dump(load(HEAD + body, "f.yaml")))["warmPool"]

    assert pool("") == {"cooldown": "30s"}
    assert pool("warmPool: {enis: {}}\n") == {"enis": {"warm": 1}, "cooldown": "30s"}


@given(documents())
def test_the_normal_form_reads_back_as_the_same_document(document: NodeNetwork) -> None:
    assert load(dump(document), "f.yaml") == document
    assert dump(load(dump(document), "f.yaml")) == dump(document)
    assert hash(load(dump(document), "f.yaml")) == hash(document)


@given(st.integers(0, 10**7).map(lambda ms: timedelta(milliseconds=ms)))
def test_durations_read_back_as_they_were_written(duration: timedelta) -> None:
    assert parse_duration(print_duration(duration)) == duration


HEAD_TREE = yaml.safe_load(HEAD)
trees: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *NodeNetwork.model_json_schema()["properties"],
                    *("mtu", "excludeCIDRs", "mode", "tags", "match", "set", "zone", "enis", "x"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(trees | st.lists(trees, max_size=3).map(lambda t: HEAD_TREE | {"overrides": t}))
def test_any_yaml_is_read_or_refused_in_the_documents_own_terms(tree: Any) -> None:
    try:
        load(yaml.safe_dump(tree), "f.yaml")
    except DocumentError as error:
        assert all(p.line >= 1 and p.column >= 1 and p.message for p in error.problems)
        assert not re.search("should (be|have|match)|Value error", str(error))


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_the_documents_own_terms(text: str) -> None:
    with pytest.raises(DocumentError):
        load(text, "f.yaml")
