"""What somebody with root can do to a node: commands for a shell, by where they are run.

In braces: a pod's ``address``, and ``veth``, the host end of its link.
"""

from __future__ import annotations

import subprocess

from lab import netns

POD_ON_HOST = [
    "ip route delete {address}/32 table 512",
    "ip route delete {address}/32 table 512; "
    "ip route add {address}/32 dev {veth} table 512 proto 201 tos 8",
    "ip route replace {address}/32 dev {veth} table 512 proto 201 mtu 600",
    "ip route replace {address}/32 dev eth1 table 512 proto 201",
    "ip route add blackhole {address}/32 table 512 metric 7 proto 201",
    "ip link set {veth} down",
    "ip link set {veth} mtu 1400",
    "ip link set {veth} group default",
    "ip link set {veth} address 02:00:00:00:00:77",
    "sh -c 'echo 0 > /proc/sys/net/ipv4/conf/{veth}/accept_local'",
    # Without our alias and our MAC it would be a link of somebody else's, which stays as it is.
    "ip link set {veth} alias node-network:somebody",
    "ip link delete {veth}",
    "ip link set {veth} name stolen0",
    "nft delete element inet node_network pods_ipv4 {{ {address} }}",
    "nft delete element inet node_network pod_eni_ipv4 {{ {address} }}",
    "ip address add 198.51.100.9/32 dev {veth}",
    "ip neighbour replace {address} dev {veth} lladdr 02:00:00:00:00:78 nud permanent",
    "ip neighbour flush dev {veth} nud permanent",
]
IN_POD = [
    "ip route delete default",
    "ip route replace default dev eth0 proto 201",
    "ip route flush dev eth0",
    "ip address flush dev eth0",
    "ip address add 192.0.2.9/32 dev eth0",
    "ip address flush dev eth0; ip address add 192.0.2.9/32 dev eth0",
    "ip neighbour flush dev eth0 nud permanent",
    "ip link set eth0 mtu 1400",
    "ip link set eth0 address 02:00:00:00:00:79",
    "ip link set eth0 down",
    "ip link delete eth0",
    "ip link set eth0 name eth9",
]
HOST = [
    "ip rule delete priority 512",
    "ip rule delete priority 1024",
    "ip rule delete protocol 201",
    "ip rule add priority 1600 lookup 1600 protocol 201",
    "ip rule add priority 512 unreachable protocol 201",
    "ip rule delete priority 512; "
    "ip rule add priority 512 lookup 512 protocol 201 suppress_prefixlength 32",
    "ip rule add priority 512 lookup main protocol 201",
    "ip route delete default table 1537",
    "ip route flush table 512",
    "ip route flush table 1537",
    "ip route add 192.0.2.0/24 dev eth0 table 1537 proto 201",
    "ip link set eth1 down",
    "ip link set eth1 mtu 1300",
    "ip link set eth1 group default",
    "ip address flush dev eth1",
    "ip address add 192.0.2.77/24 dev eth1",
    "nft flush ruleset",
    "nft delete table inet node_network",
    "nft flush chain inet node_network source_nat",
    "nft flush chain inet node_network route_mark",
    "nft flush chain inet node_network guard",
    "nft flush map inet node_network links",
    "nft flush map inet node_network guarded_ipv4",
    "nft flush set inet node_network no_snat_ipv4",
    "nft 'add table inet node_network {{ flags dormant; }}'",
    "nft 'add chain inet node_network route_mark {{ policy drop; }}'",
    "nft 'add counter inet node_network stranger'",
    "ip link set eth1 name lan9 || ip link set lan9 name eth1",
    "nft add chain inet node_network stranger",
    "nft add rule inet node_network arrival counter",
    "nft add element inet node_network pods_ipv4 {{ 192.0.2.5 }}",
    "sh -c 'echo 0 > /proc/sys/net/ipv4/ip_forward'",
    "sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter'",
]
FOREIGN = [
    ("ip rule add priority 77 from 192.0.2.200 lookup main", "ip rule delete priority 77"),
    (
        "ip route add 192.0.2.128/25 dev eth0 proto static",
        "ip route delete 192.0.2.128/25 dev eth0 proto static",
    ),
    ("nft add table inet firewall", "nft delete table inet firewall"),
    ("ip link add foreign0 type veth peer foreign1", "ip link delete foreign0"),
]


def run(where: str, command: str) -> bool:
    """Run a command in a namespace; return whether it did something."""
    argv = ["nsenter", f"--net={netns.path(where)}", "--", "sh", "-c", command]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
