"""Hypothesis strategies for whole documents and for what an override may set."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.check import merge
from schemas.document import NodeNetwork

HEAD = {"apiVersion": "node-network/v1alpha1", "kind": "NodeNetwork"}
NODE = {"instance_type": "m5.large", "zone": "us-east-1a", "node_name": "ip-10-0-1-10"}

networks = st.builds(
    lambda number, length: str(IPv4Network((number >> (32 - length) << (32 - length), length))),
    st.integers(0, 2**32 - 1),
    st.integers(4, 32),
)
text = st.text("aZ-0 é", min_size=1, max_size=4)
tags = st.dictionaries(text, text, max_size=2)
matches = st.fixed_dictionaries(
    {},
    optional={
        "instanceType": st.sampled_from(["m5.*", "*", "c5.large", "m5.larg[a-e]"]),
        "zone": st.sampled_from(["us-east-1?", "*b"]),
        "nodeName": st.sampled_from(["ip-*", "gpu"]),
    },
).map(lambda match: match or {"zone": "us-*"})
limits = st.fixed_dictionaries(
    {"enis": st.integers(1, 127), "addressesPerEni": st.integers(2, 250)}
)


def ids(prefix: str, count: int) -> st.SearchStrategy[list[str]]:
    """Lists of EC2 ids in which none stands twice."""
    some = st.text("0123456789abcdef", min_size=1, max_size=3).map(lambda t: f"{prefix}-{t}")
    return st.lists(some, max_size=count, unique=True)


def parts(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with any of the keys."""
    return st.fixed_dictionaries({}, optional=keys)


warm_pools = st.one_of(
    parts(
        addresses=parts(
            warm=st.integers(0, 1000), minimum=st.integers(0, 10000), surplus=st.integers(0, 1000)
        ),
        cooldown=st.sampled_from(["0s", "500ms", "60s", "1h"]),
    ),
    st.fixed_dictionaries({"enis": parts(warm=st.integers(0, 15))}),
    st.fixed_dictionaries({"prefixes": parts(warm=st.integers(0, 100))}),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**17) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
plugins = st.builds(
    lambda own, given: own | given,
    st.dictionaries(text, values, max_size=2),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["portmap", "bandwidth", "sbr_2.x"])},
        optional={"capabilities": st.dictionaries(text, st.booleans(), max_size=2)},
    ),
)
sources = st.sampled_from(["@peering", "@routes", "@transit", "@onprem", "pl-0a1b2c3d"])
trees = parts(
    cluster=st.text("aZ-0", max_size=5),
    kubernetes=parts(
        report=st.booleans(),
        startupTaint=st.sampled_from([None, "node-network/agent-not-ready", "A_b"]),
    ),
    maxPods=st.none() | st.integers(1, 1000),
    warmPool=warm_pools,
    eni=parts(
        max=st.none() | st.integers(1, 127),
        mtu=st.integers(1280, 9001),
        tags=tags,
        allocate=st.sampled_from(["addresses", "prefixes"]),
        usePrimary=st.booleans(),
        subnets=ids("subnet", 3),
        subnetTags=tags,
        securityGroups=ids("sg", 16),
    ),
    snat=parts(
        mode=st.sampled_from(["node", "external"]),
        excludeCIDRs=st.lists(networks | sources, max_size=4),
        onlyCIDRs=st.none() | st.lists(networks | sources, min_size=1, max_size=4),
        ports=st.sampled_from(["fully-random", "random", "sequential"]),
        rules=st.lists(
            st.fixed_dictionaries(
                {
                    "namespace": st.sampled_from(["pay-*", "web"]),
                    "to": st.lists(networks | sources, min_size=1, max_size=2),
                    "as": st.sampled_from(["pod", "node", "dedicated"]),
                }
            ),
            max_size=2,
        ),
    ),
    routing=parts(
        externalServiceCIDRs=st.lists(networks, max_size=2),
        markMask=st.sampled_from(["0xff", "0x0ff0", "0xff0000"]),
        acceptForwarded=st.booleans(),
    ),
    pods=parts(
        mtu=st.none() | st.integers(1280, 9001),
        vethPrefix=st.just("p0d"),
        vethName=st.sampled_from(["sandbox", "pod"]),
    ),
    cni=parts(
        network=st.from_regex("[A-Za-z0-9][A-Za-z0-9_.-]{0,4}", fullmatch=True),
        versions=st.lists(
            st.sampled_from(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]), min_size=1, unique=True
        ),
        budget=st.sampled_from(["1s", "30s", "110s", "1500ms"]),
        logFile=st.sampled_from([None, "journal", "/var/log/node-network/cni.log"]),
        logLevel=st.sampled_from([None, "error", "debug"]),
        chain=st.lists(plugins, max_size=3),
    ),
    reconcile=parts(resync=st.just("90s"), ec2Resync=st.just("10m")),
    podGroups=st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["a", "b-1", "c"]),
                "match": st.sampled_from(
                    [{"namespace": "pay-*"}, {"pod": "x?", "namespace": "y"}]
                ),
            },
            optional={
                "subnets": ids("subnet", 2),
                "securityGroups": ids("sg", 2),
                "warmPool": st.just({"addresses": {"warm": 2}}),
                "snat": st.sampled_from([{"mode": "external"}, {}]),
            },
        ),
        max_size=3,
        unique_by=lambda group: group["name"],
    ),
    families=st.sampled_from([["ipv4"], ["ipv6"], ["ipv4", "ipv6"], ["ipv6", "ipv4"]]),
    egressFamilies=st.sampled_from([[], ["ipv4"], ["ipv6"]]),
    instanceTypes=st.dictionaries(
        st.sampled_from(["m5.large", "u-6tb1.metal"]), limits, max_size=2
    ),
)
"""Documents without a head, each key valid on its own."""


@st.composite
def patches(draw: st.DrawFn) -> dict[str, Any]:
    """What an override may set: a part of a document, with some keys brought back to defaults."""
    return _with_nulls(draw, draw(trees))


def _with_nulls(draw: st.DrawFn, tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None
        if draw(st.integers(0, 9)) == 9
        else _with_nulls(draw, value)
        if isinstance(value, dict)
        else value
        for key, value in tree.items()
    }


def is_valid(tree: dict[str, Any]) -> bool:
    """Whether a document's keys agree with each other."""
    try:
        NodeNetwork.model_validate(tree)
    except ValidationError:
        return False
    return True


@st.composite
def documents(draw: st.DrawFn, *, overrides: bool = True) -> NodeNetwork:
    """Any valid document; each of its overrides is valid on its own."""
    base = HEAD | draw(trees)
    eni, snat, pods = (base.setdefault(key, {}) for key in ("eni", "snat", "pods"))
    if "prefixes" in base.get("warmPool", {}):
        eni["allocate"] = "prefixes"
    if eni.get("max") == 1:
        eni["usePrimary"] = True
        base.pop("podGroups", None)
    if eni.get("subnets"):
        eni.pop("subnetTags", None)
    if snat.get("mode") == "external":
        snat.pop("excludeCIDRs", None)
        snat.pop("onlyCIDRs", None)
    if not base.get("kubernetes", {}).get("report"):
        base.get("kubernetes", {}).pop("startupTaint", None)
    families = base.get("families", ["ipv4"])
    if "ipv4" not in families:
        snat.pop("excludeCIDRs", None)
        snat.pop("onlyCIDRs", None)
        snat.pop("rules", None)
        base.get("routing", {}).pop("externalServiceCIDRs", None)
    base["egressFamilies"] = [f for f in base.get("egressFamilies", []) if f not in families]
    if pods.get("mtu"):
        eni["mtu"] = max(pods["mtu"], eni.get("mtu", 9001))
    if overrides:
        drawn = draw(st.lists(st.fixed_dictionaries({"match": matches, "set": patches()})))
        base["overrides"] = [o for o in drawn if is_valid(merge(base, o["set"]))]
    return NodeNetwork.model_validate(base)
