"""The CNI specification as pure functions: arguments in, results and errors out.

Source: CNI specification 1.1.0, sections "Execution Protocol" and "Error".
"""

from __future__ import annotations

VERSIONS = ["0.4.0", "1.0.0", "1.1.0"]

INCOMPATIBLE_VERSION = 1
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
OUR_BUG = 100

VERBS = ("ADD", "DEL", "VERSION")
MAX_CONTAINER_ID = 200
"""Characters; with interface name and suffix it must fit into a file name (NAME_MAX, 255)."""

IFNAMSIZ = 15
DEFAULT_STATE_DIR = "/run/node-network"
DEFAULT_BUDGET_S = 30.0
"""Seconds an ADD waits; kubelet gives a sandbox two minutes."""


class CniError(Exception):
    """An error as the specification wants it told: code, message, details."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.details = details


class Call:
    """One invocation: what the environment and the network configuration say."""

    def __init__(self, environ: dict[str, str], config: dict[str, object]) -> None:
        self.verb = environ.get("CNI_COMMAND", "")
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.args = parse_args(environ.get("CNI_ARGS", ""))
        self.version = _text(config, "cniVersion", "")
        self.network = _text(config, "name", "")
        self.state_dir = _text(config, "stateDir", DEFAULT_STATE_DIR)
        self.budget_s = _budget(config)
        self.has_previous = config.get("prevResult") is not None

    def check(self) -> None:
        """Refuse what the specification forbids.

        Raises:
            CniError: naming the variable or key.
        """
        if self.version not in VERSIONS:
            known = ", ".join(VERSIONS)
            raise CniError(
                INCOMPATIBLE_VERSION,
                f"cniVersion {self.version!r} is not supported",
                f"supported: {known}",
            )
        if self.verb not in VERBS:
            raise CniError(
                INVALID_ENVIRONMENT,
                f"CNI_COMMAND {self.verb!r} is not implemented",
                ", ".join(VERBS),
            )
        if not is_container_id(self.container_id):
            raise CniError(INVALID_ENVIRONMENT, "CNI_CONTAINERID is missing or malformed")
        if not is_ifname(self.ifname):
            raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME is missing or malformed")
        if self.verb == "ADD" and not self.netns:
            raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is missing")
        if not self.state_dir.startswith("/"):
            raise CniError(INVALID_CONFIG, "stateDir must be an absolute path")
        if self.verb == "ADD" and self.has_previous:
            raise CniError(
                INVALID_CONFIG,
                "prevResult is set: this plugin gives a pod its address and must be first",
            )

    def intent(self, state: str, netns_inode: int) -> dict[str, object]:
        """Return the record of this call."""
        return {
            "version": 1,
            "state": state,
            "containerID": self.container_id,
            "ifname": self.ifname,
            "netns": self.netns,
            "netnsInode": netns_inode,
            "podNamespace": self.args.get("K8S_POD_NAMESPACE", ""),
            "podName": self.args.get("K8S_POD_NAME", ""),
            "podUID": self.args.get("K8S_POD_UID", ""),
            "network": self.network,
        }


def parse_args(text: str) -> dict[str, str]:
    """Read ``CNI_ARGS``: pairs joined by semicolons. What is no pair is ignored."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {key: value for key, equals, value in pairs if equals}


def is_container_id(text: str) -> bool:
    """Whether text is what the specification allows; it becomes part of a file name."""
    return (
        0 < len(text) <= MAX_CONTAINER_ID
        and text.isascii()
        and text[0].isalnum()
        and all(c.isalnum() or c in "_.-" for c in text)
    )


def is_ifname(text: str) -> bool:
    """Whether the kernel would take it (dev_valid_name in net/core/dev.c), and a file name too."""
    return (
        0 < len(text) <= IFNAMSIZ
        and text not in {".", ".."}
        and text.isascii()
        and text.isprintable()
        and not any(c.isspace() or c in "/:" for c in text)
    )


def result(reply: dict[str, object], version: str) -> dict[str, object]:
    """Return the ADD result in the words of ``version``.

    0.4.0 names each address's family; ``mtu`` of an interface came with 1.1.0.
    """
    body = {key: reply.get(key) for key in ("interfaces", "ips", "routes", "dns")}
    if version == "0.4.0":
        body["ips"] = [
            {"version": "6" if ":" in ip["address"] else "4", **ip} for ip in _list(reply, "ips")
        ]
    if version != "1.1.0":
        body["interfaces"] = [
            {key: value for key, value in link.items() if key != "mtu"}
            for link in _list(reply, "interfaces")
        ]
    return {"cniVersion": version, **body}


def error(problem: CniError, version: str) -> dict[str, object]:
    """Return an error as the specification prints it."""
    body: dict[str, object] = {
        "cniVersion": version if version in VERSIONS else VERSIONS[-1],
        "code": problem.code,
        "msg": problem.msg,
    }
    if problem.details:
        body["details"] = problem.details
    return body


def versions(config: dict[str, object]) -> dict[str, object]:
    """Return the answer to VERSION."""
    asked = config.get("cniVersion")
    return {
        "cniVersion": asked if asked in VERSIONS else VERSIONS[-1],
        "supportedVersions": VERSIONS,
    }


def _text(config: dict[str, object], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise CniError(INVALID_CONFIG, f"{key} must be text")
    return value


def _budget(config: dict[str, object]) -> float:
    value = config.get("budgetSeconds", DEFAULT_BUDGET_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 110:
        raise CniError(INVALID_CONFIG, "budgetSeconds must be a number above 0, at most 110")
    return float(value)


def _list(reply: dict[str, object], key: str) -> list[dict[str, str]]:
    value = reply.get(key)
    return value if isinstance(value, list) else []
