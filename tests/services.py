"""kube-proxy and the portmap plugin on a node of the lab: what they lay out for some services.

Each of kube-proxy's modes with its own chains, hooks, priorities and marks (Kubernetes
``pkg/proxy/nftables``, ``iptables``, ``ipvs``). Of mode ipvs only the sets and rules: its virtual
servers and its dummy link need a kernel with ``ip_vs``, and no service answers without them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Literal

from rulesets import Backend, Ruleset, Xtables

Mode = Literal["nftables", "iptables", "ipvs"]

MASQUERADE = 0x4000
"""kube-proxy's mark for what leaves with the node's address (--iptables-masquerade-bit 14)."""

HOST_PORT_MASQUERADE = 0x2000
"""The portmap plugin's mark for the same (its --mark-masq-bit 13)."""

SERVICE_CIDR = "172.20.0.0/16"
"""Service addresses of a cluster whose VPC is in 10.0.0.0/8 (EKS user guide)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service leads.

    Attributes:
        local: the pod is on this node.
    """

    address: str
    port: int
    local: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a service, as this node's kube-proxy knows it.

    Attributes:
        name: ``namespace/service:port``.
        node_port: 0 for none.
        local: externalTrafficPolicy Local: what comes by the NodePort stays on the node and
            keeps its source.
    """

    name: str
    address: str
    port: int
    endpoints: tuple[Endpoint, ...]
    protocol: str = "tcp"
    node_port: int = 0
    local: bool = False

    @property
    def local_endpoints(self) -> tuple[Endpoint, ...]:
        """Those on this node."""
        return tuple(e for e in self.endpoints if e.local)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A port of the node that leads to one pod."""

    port: int
    address: str
    pod_port: int
    container_id: str = "c0"
    protocol: str = "tcp"


def padding(count: int, *, node_ports: int = 0) -> tuple[Service, ...]:
    """Return services that nobody calls, so that rulesets are as long as a cluster's.

    Args:
        count: services, 30,000 at most.
        node_ports: how many of them have one.
    """
    first, pods = IPv4Address("172.20.100.0"), IPv4Address("100.65.0.0")
    return tuple(
        Service(
            f"padding/service-{n}:http",
            str(first + n),
            80,
            (Endpoint(str(pods + 2 * n), 8080), Endpoint(str(pods + 2 * n + 1), 8080)),
            node_port=32767 - n if n < node_ports else 0,
        )
        for n in range(count)
    )


def kube_proxy(
    mode: Mode,
    services: Sequence[Service],
    *,
    node: str,
    backend: Backend = "nft",
    pod_cidr: str = "",
) -> Ruleset:
    """What kube-proxy lays out.

    Args:
        mode: its mode.
        services: what it knows; ``padding`` makes more of them.
        node: the node's address, which NodePorts are served on in mode nftables.
        backend: of iptables, in mode iptables.
        pod_cidr: its --cluster-cidr; then what comes from elsewhere is masqueraded. EKS sets none.
    """
    if mode == "nftables":
        text = "".join(_nftables(services, node, pod_cidr))
        return Ruleset("kube-proxy", nft=text, tables=("ip kube-proxy",))
    if mode == "ipvs":
        return Ruleset(
            "kube-proxy", xtables=_ipvs(pod_cidr), backend=backend, sets=_ipvs_sets(services)
        )
    tables = _iptables(services, pod_cidr)
    return Ruleset("kube-proxy", xtables=tables, backend=backend)


def portmap(host_ports: Sequence[HostPort], *, backend: Backend = "nft") -> Ruleset:
    """What the reference plugin portmap lays out with iptables (containernetworking/plugins)."""
    chains = ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"]
    mark = f"{HOST_PORT_MASQUERADE:#x}/{HOST_PORT_MASQUERADE:#x}"
    rules = [
        '-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" '
        f"-j MARK --set-xmark {mark}",
        f"-A CNI-HOSTPORT-MASQ -m mark --mark {mark} -j MASQUERADE",
    ]
    for one in host_ports:
        chain = (
            "CNI-DN-" + hashlib.sha256(f"{one.container_id}{one.port}".encode()).hexdigest()[:21]
        )
        chains.append(chain)
        match = f"-p {one.protocol} -m {one.protocol} --dport {one.port}"
        rules += [
            f"-A CNI-HOSTPORT-DNAT -p {one.protocol} -m comment --comment "
            f'"dnat name: \\"node-network\\" id: \\"{one.container_id}\\"" '
            f"-m multiport --dports {one.port} -j {chain}",
            f"-A {chain} -s {one.address}/32 {match} -j CNI-HOSTPORT-SETMARK",
            f"-A {chain} -s 127.0.0.1/32 {match} -j CNI-HOSTPORT-SETMARK",
            f"-A {chain} {match} -j DNAT --to-destination {one.address}:{one.pod_port}",
        ]
    jumps = (
        ("PREROUTING", "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"),
        ("OUTPUT", "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"),
        (
            "POSTROUTING",
            '-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ',
        ),
    )
    nat = Xtables("nat", tuple(chains), jumps, tuple(rules))
    return Ruleset("portmap", xtables=(nat,), backend=backend)


# -- mode nftables ---------------------------------------------------------------------------


def _nftables(services: Sequence[Service], node: str, pod_cidr: str) -> Iterator[str]:
    addresses = ", ".join(sorted({s.address for s in services}))
    yield "table ip kube-proxy {\n"
    yield f"\tset cluster-ips {{ type ipv4_addr; {_elements(addresses)} }}\n"
    yield f"\tset nodeport-ips {{ type ipv4_addr; {_elements(node)} }}\n"
    for name, key in (
        ("firewall-ips", "ipv4_addr . inet_proto . inet_service"),
        ("no-endpoint-services", "ipv4_addr . inet_proto . inet_service"),
        ("no-endpoint-nodeports", "inet_proto . inet_service"),
    ):
        yield f"\tmap {name} {{ type {key} : verdict; }}\n"
    yield NFTABLES_CHAINS
    for service in services:
        yield from _service_chains(service, pod_cidr)
    by_address = ", ".join(
        f"{s.address} . {s.protocol} . {s.port} : goto {_chain('service', s)}" for s in services
    )
    by_port = ", ".join(
        f"{s.protocol} . {s.node_port} : goto {_chain('external', s)}"
        for s in services
        if s.node_port
    )
    # Maps after the chains that their verdicts name.
    key = "ipv4_addr . inet_proto . inet_service"
    yield f"\tmap service-ips {{ type {key} : verdict; {_elements(by_address)} }}\n"
    key = "inet_proto . inet_service"
    yield f"\tmap service-nodeports {{ type {key} : verdict; {_elements(by_port)} }}\n"
    yield "}\n"


NFTABLES_CHAINS = f"""\
\tchain mark-for-masquerade {{
\t\tmeta mark set meta mark | {MASQUERADE:#x}
\t}}
\tchain masquerading {{
\t\tmeta mark & {MASQUERADE:#x} == 0 return
\t\tmeta mark set meta mark ^ {MASQUERADE:#x}
\t\tmasquerade fully-random
\t}}
\tchain reject-chain {{
\t\treject
\t}}
\tchain firewall-check {{
\t\tip daddr . meta l4proto . th dport vmap @firewall-ips
\t}}
\tchain nodeport-endpoints-check {{
\t\tip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
\t}}
\tchain service-endpoints-check {{
\t\tip daddr . meta l4proto . th dport vmap @no-endpoint-services
\t}}
\tchain cluster-ips-check {{
\t\tip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
\t\tip daddr {SERVICE_CIDR} drop comment "Drop traffic to unallocated ClusterIPs"
\t}}
\tchain services {{
\t\tip daddr . meta l4proto . th dport vmap @service-ips
\t\tip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
\t}}
\tchain filter-prerouting {{
\t\ttype filter hook prerouting priority -110; policy accept;
\t\tct state new jump firewall-check
\t}}
\tchain filter-input {{
\t\ttype filter hook input priority -110; policy accept;
\t\tct state new jump nodeport-endpoints-check
\t\tct state new jump service-endpoints-check
\t}}
\tchain filter-forward {{
\t\ttype filter hook forward priority -110; policy accept;
\t\tct state new jump service-endpoints-check
\t\tct state new jump cluster-ips-check
\t}}
\tchain filter-output {{
\t\ttype filter hook output priority -110; policy accept;
\t\tct state new jump service-endpoints-check
\t\tct state new jump firewall-check
\t}}
\tchain filter-output-post-dnat {{
\t\ttype filter hook output priority -90; policy accept;
\t\tct state new jump cluster-ips-check
\t}}
\tchain nat-prerouting {{
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tjump services
\t}}
\tchain nat-output {{
\t\ttype nat hook output priority -100; policy accept;
\t\tjump services
\t}}
\tchain nat-postrouting {{
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tjump masquerading
\t}}
"""
"""What is there with any services, or none; ``services`` names maps that follow."""


def _service_chains(service: Service, pod_cidr: str) -> Iterator[str]:
    for one in service.endpoints:
        yield f"\tchain {_endpoint_chain(service, one)} {{\n"
        yield f"\t\tip saddr {one.address} jump mark-for-masquerade\n"
        yield f"\t\tmeta l4proto {service.protocol} dnat to {one.address}:{one.port}\n\t}}\n"
    yield f"\tchain {_chain('service', service)} {{\n"
    if pod_cidr:
        yield (
            f"\t\tip daddr {service.address} {service.protocol} dport {service.port} "
            f"ip saddr != {pod_cidr} jump mark-for-masquerade\n"
        )
    yield from _spread(service, service.endpoints)
    yield "\t}\n"
    if not service.node_port:
        return
    yield f"\tchain {_chain('external', service)} {{\n"
    if service.local:
        if pod_cidr:
            yield f"\t\tip saddr {pod_cidr} goto {_chain('service', service)}\n"
        yield "\t\tfib saddr type local jump mark-for-masquerade\n"
        yield f"\t\tfib saddr type local goto {_chain('service', service)}\n"
        yield from _spread(service, service.local_endpoints)
    else:
        yield "\t\tjump mark-for-masquerade\n"
        yield f"\t\tgoto {_chain('service', service)}\n"
    yield "\t}\n"


def _spread(service: Service, endpoints: Sequence[Endpoint]) -> Iterator[str]:
    if endpoints:
        choices = ", ".join(
            f"{n} : goto {_endpoint_chain(service, e)}" for n, e in enumerate(endpoints)
        )
        yield f"\t\tnumgen random mod {len(endpoints)} vmap {{ {choices} }}\n"


def _chain(kind: str, service: Service) -> str:
    path = _path(service)
    return f"{kind}-{_digest(path)[:8]}-{path}"


def _endpoint_chain(service: Service, endpoint: Endpoint) -> str:
    path = f"{_path(service)}__{endpoint.address}/{endpoint.port}"
    return f"endpoint-{_digest(path)[:8]}-{path}"


def _path(service: Service) -> str:
    """``namespace/service/protocol/port``, as in the names of kube-proxy's nftables chains."""
    return service.name.replace(":", f"/{service.protocol}/")


def _elements(text: str) -> str:
    return f"elements = {{ {text} }};" if text else ""


# -- mode iptables ---------------------------------------------------------------------------


def _iptables(services: Sequence[Service], pod_cidr: str) -> tuple[Xtables, ...]:
    bit = f"{MASQUERADE:#x}/{MASQUERADE:#x}"
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    chains.append("KUBE-PROXY-CANARY")
    rules = [
        f"-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE:#x}",
        f"-A KUBE-POSTROUTING -m mark ! --mark {bit} -j RETURN",
        f"-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE:#x}",
        "-A KUBE-POSTROUTING -m comment --comment "
        '"kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    ]
    for service in services:
        more_chains, more_rules = _service_rules(service, pod_cidr)
        chains += more_chains
        rules += more_rules
    rules.append(
        '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be '
        'the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'
    )
    portals = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    nat = Xtables(
        "nat",
        tuple(chains),
        (
            ("PREROUTING", portals),
            ("OUTPUT", portals),
            (
                "POSTROUTING",
                '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
            ),
        ),
        tuple(rules),
    )
    return (_filter(bit), nat, Xtables("mangle", ("KUBE-IPTABLES-HINT", "KUBE-PROXY-CANARY")))


def _filter(bit: str) -> Xtables:
    new = "-m conntrack --ctstate NEW -m comment --comment"
    return Xtables(
        "filter",
        chains=(
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-FIREWALL",
            "KUBE-PROXY-CANARY",
        ),
        jumps=(
            ("INPUT", f'{new} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
            (
                "INPUT",
                '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
            ),
            (
                "INPUT",
                f'{new} "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
            ),
            ("INPUT", "-j KUBE-FIREWALL"),
            ("FORWARD", f'{new} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
            ("FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
            ("FORWARD", f'{new} "kubernetes service portals" -j KUBE-SERVICES'),
            (
                "FORWARD",
                f'{new} "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES',
            ),
            ("OUTPUT", f'{new} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
            ("OUTPUT", f'{new} "kubernetes service portals" -j KUBE-SERVICES'),
            ("OUTPUT", "-j KUBE-FIREWALL"),
        ),
        rules=(
            "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
            '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" '
            f"-m mark --mark {bit} -j ACCEPT",
            '-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" '
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "
            '"block incoming localnet connections" -m conntrack '
            "! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        ),
    )


def _service_rules(service: Service, pod_cidr: str) -> tuple[list[str], list[str]]:
    name, protocol = service.name, service.protocol
    key = f"{name}{protocol}"
    svc, ext, svl = (f"KUBE-{kind}-{_digest(key)}" for kind in ("SVC", "EXT", "SVL"))
    chains, rules = [svc], []
    comment = f'-m comment --comment "{name} cluster IP"'
    rules.append(
        f"-A KUBE-SERVICES -d {service.address}/32 -p {protocol} {comment} "
        f"-m {protocol} --dport {service.port} -j {svc}"
    )
    if pod_cidr:
        rules.append(
            f"-A {svc} ! -s {pod_cidr} -d {service.address}/32 -p {protocol} {comment} "
            f"-m {protocol} --dport {service.port} -j KUBE-MARK-MASQ"
        )
    rules += _choices(svc, service, service.endpoints)
    for one in service.endpoints:
        sep = _endpoint_name(service, one)
        chains.append(sep)
        rules += [
            f'-A {sep} -s {one.address}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ',
            f'-A {sep} -p {protocol} -m comment --comment "{name}" -m {protocol} '
            f"-j DNAT --to-destination {one.address}:{one.port}",
        ]
    if not service.node_port:
        return chains, rules
    chains.append(ext)
    rules.append(
        f'-A KUBE-NODEPORTS -p {protocol} -m comment --comment "{name}" -m {protocol} '
        f"--dport {service.node_port} -j {ext}"
    )
    if service.local:
        chains.append(svl)
        if pod_cidr:
            rules.append(f"-A {ext} -s {pod_cidr} -j {svc}")
        rules += [
            f"-A {ext} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
            f"-A {ext} -m addrtype --src-type LOCAL -j {svc}",
            f"-A {ext} -j {svl}",
            *_choices(svl, service, service.local_endpoints),
        ]
    else:
        rules += [
            f'-A {ext} -m comment --comment "masquerade traffic for {name} external destinations" '
            "-j KUBE-MARK-MASQ",
            f"-A {ext} -j {svc}",
        ]
    return chains, rules


def _choices(chain: str, service: Service, endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """Choose evenly: the first of n with probability 1/n, the next of the rest, and so on."""
    for left, one in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield (
            f'-A {chain} -m comment --comment "{service.name} -> {one.address}:{one.port}" '
            f"{chance}-j {_endpoint_name(service, one)}"
        )


def _endpoint_name(service: Service, one: Endpoint) -> str:
    key = f"{service.name}{service.protocol}{one.address}:{one.port}"
    return f"KUBE-SEP-{_digest(key)}"


# -- mode ipvs ----------------------------------------------------------------------------------


def _ipvs_sets(services: Sequence[Service]) -> str:
    lines = [
        "create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536",
        "create KUBE-LOOP-BACK hash:ip,port,ip family inet hashsize 1024 maxelem 65536",
        "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
        "create KUBE-NODE-PORT-LOCAL-TCP bitmap:port range 0-65535",
    ]
    for one in services:
        lines.append(f"add KUBE-CLUSTER-IP {one.address},{one.protocol}:{one.port}")
        lines += [
            f"add KUBE-LOOP-BACK {e.address},{one.protocol}:{e.port},{e.address}"
            for e in one.local_endpoints
        ]
        if one.node_port:
            lines.append(f"add KUBE-NODE-PORT-TCP {one.node_port}")
        if one.node_port and one.local:
            lines.append(f"add KUBE-NODE-PORT-LOCAL-TCP {one.node_port}")
    return "\n".join([*dict.fromkeys(lines), ""])


def _ipvs(pod_cidr: str) -> tuple[Xtables, ...]:
    bit = f"{MASQUERADE:#x}/{MASQUERADE:#x}"
    portals = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    cluster = "-m set --match-set KUBE-CLUSTER-IP"
    outside = f"! -s {pod_cidr} {cluster} dst,dst" if pod_cidr else f"{cluster} src,dst"
    nat = Xtables(
        "nat",
        (
            "KUBE-SERVICES",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
        ),
        (
            ("PREROUTING", portals),
            ("OUTPUT", portals),
            (
                "POSTROUTING",
                '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
            ),
        ),
        (
            f"-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE:#x}",
            "-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN",
            f"-A KUBE-SERVICES {outside} -j KUBE-MARK-MASQ",
            "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT",
            f"-A KUBE-SERVICES {cluster} dst,dst -j ACCEPT",
            "-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -j RETURN",
            "-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ",
            "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ",
            "-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE",
            f"-A KUBE-POSTROUTING -m mark ! --mark {bit} -j RETURN",
            f"-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE:#x}",
            "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        ),
    )
    fltr = Xtables(
        "filter",
        ("KUBE-FORWARD", "KUBE-NODE-PORT", "KUBE-PROXY-FIREWALL", "KUBE-IPVS-FILTER"),
        (
            ("INPUT", "-j KUBE-IPVS-FILTER"),
            ("INPUT", "-j KUBE-PROXY-FIREWALL"),
            ("INPUT", "-j KUBE-NODE-PORT"),
            ("FORWARD", "-j KUBE-PROXY-FIREWALL"),
            ("FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
        ),
        (
            f"-A KUBE-FORWARD -m mark --mark {bit} -j ACCEPT",
            "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            f"-A KUBE-IPVS-FILTER {cluster} dst,dst -j RETURN",
        ),
    )
    return (fltr, nat)


def _digest(text: str) -> str:
    """Sixteen characters of base32, as in kube-proxy's chain names."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]
