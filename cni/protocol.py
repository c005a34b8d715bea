"""The CNI specification as pure functions: arguments in, results and errors out.

Source: CNI specification 1.1.0, sections "Execution Protocol" and "Error".
"""

from __future__ import annotations

import errno
import os

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50
LIMITED = 51

OUR_BUG = 100
ALREADY_ATTACHED = 101  # ADD: this container has this interface already; nothing of it is touched
INTERFACE_EXISTS = 102  # ADD: another owner's link has the name CNI_IFNAME in the pod's namespace
KERNEL_DIFFERS = 103  # CHECK: an object of the attachment is not in the kernel as it should be
RESULT_DIFFERS = 104  # CHECK: prevResult is not what the pod was given

NETNS_TAKEN = 105
"""ADD: the namespace has an interface of ours already, of another container or name."""

OBJECT_EXISTS = 106
"""ADD: another owner's address, route or neighbour is in the place of one that the pod needs."""

MAX_CODE = 998
"""Of an error; 999 is what the reference library makes of one without a code (``skel.go``)."""

SINCE = {"ADD": 0, "DEL": 0, "CHECK": 1, "GC": 3, "STATUS": 3}
"""Verbs, each with the place in ``VERSIONS`` of the first that has it."""

MAX_CONTAINER_ID = 200
"""Characters; with interface name and suffix it must fit into a file name (NAME_MAX, 255)."""

LOOPBACK = "lo"
IFNAMSIZ = 15
MAX_TEXT = 253
"""Characters that an intent keeps of a name; a pod's has no more (RFC 1123 subdomain)."""

MAX_PATH = 4095  # bytes of a path (PATH_MAX without its end)

DEFAULT_STATE_DIR = "/run/node-network"
DEFAULT_BUDGET_S = 30.0  # seconds an ADD waits; kubelet gives a sandbox two minutes
MAX_WAIT_S = 110

ENDING = "ReconcilerEnding"
"""The reason of a refusal by a process that was told to end: the next one serves the pod."""

NOT_RUNNING = "NotRunning"
"""The reason of a refusal by the executable itself: no reconciler answers on this node."""

Object = dict[str, object]


class CniError(Exception):
    """An error as the specification wants it told: code, message, details or a cause."""

    def __init__(self, code: int, msg: str, details: str | Exception = "") -> None:
        super().__init__(msg)
        self.code, self.msg = code, msg
        self.details = why(details) if isinstance(details, Exception) else details


def why(error: Exception) -> str:
    """Return what went wrong, by its number's name: runtimes act on texts of the C library."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        return f"{type(error).__name__}: {error}"
    return f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"


class Call:
    """One invocation: what the environment and the network configuration say."""

    def __init__(self, environ: dict[str, str], config: Object) -> None:
        self.environ = environ
        self.config = config
        self.container_id = environ.get("CNI_CONTAINERID", "")
        self.ifname = environ.get("CNI_IFNAME", "")
        self.netns = environ.get("CNI_NETNS", "")
        self.args = parse_args(environ.get("CNI_ARGS", ""))
        self.version = _text(config, "cniVersion", "")
        self.network = _text(config, "name", "")
        self.state_dir = _text(config, "stateDir", DEFAULT_STATE_DIR)
        self.budget_s = _seconds(config, "budgetSeconds", DEFAULT_BUDGET_S)
        self.attempt = ""  # which ADD this is about, once that is known
        self.note = ""  # for the log

    @property
    def verb(self) -> str:
        """What is asked for."""
        return self.environ.get("CNI_COMMAND", "")

    @property
    def start_s(self) -> float:
        """Seconds a reconciler may take to start; 0 if the configuration does not say.

        Raises:
            CniError: what it says is out of range.
        """
        return _seconds(self.config, "startSeconds", 0.0)

    @property
    def previous(self) -> object:
        """The result of the chain so far, or, in CHECK and DEL, of its ADD."""
        return self.config.get("prevResult")

    @property
    def pod(self) -> str:
        """``namespace/name``, empty when the runtime did not say."""
        namespace = self.args.get("K8S_POD_NAMESPACE", "")
        return f"{namespace}/{self.args.get('K8S_POD_NAME', '')}".strip("/")

    @property
    def pod_uid(self) -> str:
        """The pod's UID, empty when the runtime did not say."""
        return self.args.get("K8S_POD_UID", "")[:MAX_TEXT]

    @property
    def trace_id(self) -> str:
        """The trace this call is part of (W3C Trace Context), empty if there is none."""
        parts = self.environ.get("TRACEPARENT", "").split("-")
        known = len(parts) >= 4 and len(parts[1]) == 32
        return parts[1] if known and not parts[1].strip("0123456789abcdef") else ""

    def check(self) -> None:
        """Refuse what the specification forbids.

        Raises:
            CniError: naming the variable or key.
        """
        self._check_version()
        if not is_name(self.network):
            raise CniError(INVALID_CONFIG, "name is missing or malformed")
        if not is_path(self.state_dir):
            raise CniError(INVALID_CONFIG, "stateDir must be an absolute path")
        if self.verb in ("ADD", "DEL", "CHECK"):
            self._check_attachment()

    def _check_version(self) -> None:
        if self.version not in VERSIONS:
            what = f"cniVersion {self.version!r} is not supported"
            raise CniError(INCOMPATIBLE_VERSION, what, f"supported: {', '.join(VERSIONS)}")
        if self.verb not in SINCE:
            what = f"CNI_COMMAND {self.verb!r} is no verb"
            raise CniError(INVALID_ENVIRONMENT, what, ", ".join(SINCE))
        if VERSIONS.index(self.version) < SINCE[self.verb]:
            what = f"cniVersion {self.version} does not allow {self.verb}"
            raise CniError(
                INCOMPATIBLE_VERSION, what, f"it came with {VERSIONS[SINCE[self.verb]]}"
            )

    def _check_attachment(self) -> None:
        if not is_container_id(self.container_id):
            raise CniError(INVALID_ENVIRONMENT, "CNI_CONTAINERID is missing or malformed")
        if not is_ifname(self.ifname) or (self.verb == "ADD" and not is_link_name(self.ifname)):
            raise CniError(INVALID_ENVIRONMENT, "CNI_IFNAME is missing or malformed")
        if self.verb == "DEL":
            return  # whatever else is wrong, the release is possible
        if not self.netns:
            raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS is missing")
        if not is_path(self.netns):
            raise CniError(INVALID_ENVIRONMENT, "CNI_NETNS must be an absolute path")
        if self.previous is not None and not isinstance(self.previous, dict):
            raise CniError(INVALID_CONFIG, "prevResult must be an object")
        if self.verb == "CHECK" and self.previous is None:
            raise CniError(INVALID_CONFIG, "prevResult is missing: CHECK is about what ADD gave")
        if self.verb == "ADD":
            if self.ifname == LOOPBACK:
                what = f"CNI_IFNAME is {LOOPBACK}, which every namespace has from its beginning"
                cure = "name the pod's interface otherwise, as eth0"
                raise CniError(INTERFACE_EXISTS, what, cure)
            self._check_wishes()

    def _check_wishes(self) -> None:
        """Refuse requests by capabilities that we do not have.

        It passes only capabilities that the configuration declares; others are never here.
        """
        wishes = self.config.get("runtimeConfig")
        for key in ("ips", "mac"):
            if isinstance(wishes, dict) and wishes.get(key):
                details = (
                    "addresses are those of the node's ENIs, MACs follow from the container; "
                    f"do not declare the capability {key!r} for this plugin"
                )
                what = f"runtimeConfig.{key} cannot be honoured"
                raise CniError(UNSUPPORTED_FIELD, what, details)
        if _links(self.previous, self.ifname):
            what = f"prevResult has {self.ifname} already: an earlier plugin of the chain made it"
            raise CniError(INVALID_CONFIG, what)


def parse_args(text: str) -> dict[str, str]:
    """Read ``CNI_ARGS``: pairs joined by semicolons. What is no pair is ignored."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {key: value for key, equals, value in pairs if equals}


def is_container_id(text: str) -> bool:
    """Whether text is what the specification allows; it becomes part of a file name."""
    return len(text) <= MAX_CONTAINER_ID and _is_word(text)


def is_name(text: str) -> bool:
    """Whether text is what the specification allows as the name of a network."""
    return len(text) <= MAX_TEXT and _is_word(text)


def is_ifname(text: str) -> bool:
    """Whether the kernel would take it (dev_valid_name in net/core/dev.c), and a file name too."""
    return (
        0 < len(text) <= IFNAMSIZ
        and text not in {".", ".."}
        and text.isascii()
        and text.isprintable()
        and not any(c.isspace() or c in "/:" for c in text)
    )


def is_link_name(text: str) -> bool:
    """Whether the kernel makes a link of that name and no other.

    It puts a number in the place of ``%d`` (__dev_alloc_name), so that each try makes one more
    link, and refuses what stands for all links in /proc/sys (devinet_sysctl_register).
    """
    return "%" not in text and text not in ("all", "default")


def is_path(text: str) -> bool:
    """Whether text can be an absolute path."""
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False
    return text.startswith("/") and size <= MAX_PATH and "\0" not in text


def parse_valid_attachments(value: object) -> set[tuple[str, str]]:
    """Read what GC is told to keep: container ID and interface name of each.

    Raises:
        CniError: it is no such list. One that cannot be read, or ``null``, may stand for
            attachments that are not listed, so it never counts as an empty list.
    """
    key = "cni.dev/valid-attachments"
    if not isinstance(value, list):
        raise CniError(INVALID_CONFIG, f"{key} is missing or no list", "nothing was released")
    kept = set()
    for entry in value:
        parts = (entry.get("containerID"), entry.get("ifname")) if isinstance(entry, dict) else ()
        if len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
            what = f"{key} has an entry without containerID and ifname"
            raise CniError(INVALID_CONFIG, what, "nothing was released")
        kept.add((str(parts[0]), str(parts[1])))
    return kept


def result(reply: Object, version: str, previous: object = None) -> Object:
    """Return the ADD result in the words of ``version``, after what earlier plugins said.

    Up to 0.4.0 each address names its family; ``mtu`` of an interface came with 1.1.0.
    """
    before = _objects(previous, "interfaces")
    dns = previous.get("dns") if isinstance(previous, dict) else None
    interfaces = [
        {key: value for key, value in link.items() if key != "mtu" or version == "1.1.0"}
        for link in _objects(reply, "interfaces")
    ]
    ips = [_ip(ip, version, len(before)) for ip in _objects(reply, "ips")]
    return {
        "cniVersion": version,
        "interfaces": before + interfaces,
        "ips": _objects(previous, "ips") + ips,
        "routes": _objects(previous, "routes") + _objects(reply, "routes"),
        "dns": dns or reply.get("dns") or {},
    }


def is_result(reply: Object) -> bool:
    """Whether the reconciler's answer says what a pod was given: at least one address."""
    needed = {"interfaces": ("name", "mac", "sandbox"), "ips": ("address",), "routes": ("dst",)}
    return bool(_objects(reply, "ips")) and all(
        isinstance(entries := reply.get(key), list)
        and all(
            isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in names)
            for entry in entries
        )
        for key, names in needed.items()
    )


def _ip(ip: Object, version: str, shift: int) -> Object:
    index = ip.get("interface")
    moved = {**ip, "interface": index + shift} if isinstance(index, int) else ip
    if version in ("0.3.1", "0.4.0"):
        return {"version": "6" if ":" in str(ip.get("address")) else "4", **moved}
    return moved


def find_difference(previous: object, reply: Object, ifname: str) -> str:
    """Name the first object of a pod that prevResult does not have.

    What later plugins of the chain have added is ignored. ``reply`` is what the pod has:
    interfaces, ips and routes as in a result.
    """
    known = _links(previous, ifname)
    if not known:
        return f"interface {ifname}: prevResult has none of that name in a sandbox"
    for link in _links(reply, ifname):
        if known[0].get("mac") and known[0]["mac"] != link["mac"]:
            return f"interface {ifname}: mac {link['mac']}, in prevResult {known[0]['mac']}"
        if known[0].get("sandbox") != link["sandbox"]:
            return f"interface {ifname}: in {link['sandbox']}, in prevResult {known[0]['sandbox']}"
    for key, what, field in (("ips", "address", "address"), ("routes", "route", "dst")):
        had = {str(entry.get(field)).lower() for entry in _objects(previous, key)}
        for entry in _objects(reply, key):
            if str(entry[field]).lower() not in had:
                return f"{what} {entry[field]}: prevResult does not have it"
    return ""


def error(problem: CniError, version: str) -> Object:
    """Return an error as the specification prints it."""
    known = version if version in VERSIONS else VERSIONS[-1]
    body: Object = {"cniVersion": known, "code": problem.code, "msg": problem.msg}
    return body | ({"details": problem.details} if problem.details else {})


def defuse(problem: CniError) -> CniError:
    """Return a DEL's error without the words that go-cni treats as success.

    Source: containerd/go-cni, ``cni.go``, Remove: an error whose text has one of them is dropped,
    and with it the release.
    """
    texts = [problem.msg, problem.details]
    for words, instead in (("not found", "missing"), ("no such file", "no file")):
        for number, text in enumerate(texts):
            while (at := text.lower().find(words)) >= 0:
                text = text[:at] + instead + text[at + len(words) :]
            texts[number] = text
    return CniError(problem.code, *texts)


def versions(config: Object) -> Object:
    """Return the answer to VERSION."""
    asked = config.get("cniVersion")
    known = asked if asked in VERSIONS else VERSIONS[-1]
    return {"cniVersion": known, "supportedVersions": VERSIONS}


def _is_word(text: str) -> bool:
    return text.isascii() and text[:1].isalnum() and all(c.isalnum() or c in "_.-" for c in text)


def _text(config: Object, key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise CniError(INVALID_CONFIG, f"{key} must be text")
    return value


def _seconds(config: Object, key: str, default: float) -> float:
    if key not in config:
        return default
    value = config[key]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= MAX_WAIT_S
    ):
        raise CniError(INVALID_CONFIG, f"{key} must be a number above 0, at most {MAX_WAIT_S}")
    return float(value)


def _objects(body: object, key: str) -> list[Object]:
    value = body.get(key) if isinstance(body, dict) else None
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _links(body: object, ifname: str) -> list[Object]:
    """Return the interfaces of that name that are in a pod."""
    links = _objects(body, "interfaces")
    return [link for link in links if link.get("name") == ifname and link.get("sandbox")]
