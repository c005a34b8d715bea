"""The house rules, as tests: layers, doors, purity, sizes, words, exercised actions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from reconciler.core import attachment as core_attachment
from reconciler.core.facts import Installation
from reconciler.diagnostics import stock_objects
from reconciler.domains import (
    address,
    boot_rule,
    conflist,
    conntrack,
    executable,
    fast_path,
    forward,
    link,
    nat,
    nat_objects,
    neighbour,
    route,
    rule,
    sysctl,
)
from reconciler.engine.plan import Verb
from reconciler.ipam import ec2_action, identity, release

ROOT = Path(__file__).parents[1]
SHIPPED = [p for part in ("reconciler", "cni", "schemas") for p in (ROOT / part).rglob("*.py")]

ARROWS: dict[str, set[str]] = {
    "schemas": set(),
    "cni": set(),
    "errors": set(),
    "engine": {"errors"},
    "cluster": {"errors", "engine"},
    "core": {"engine"},
    "ipam": {"schemas", "errors", "engine", "core"},
    "egress": {"schemas", "errors", "engine", "core"},
    "domains": {"schemas", "errors", "engine", "core", "ipam", "egress"},
    "diagnostics": {"schemas", "errors", "engine", "core", "ipam", "egress", "domains"},
    "targets": {
        *("schemas", "errors", "engine", "core", "ipam", "egress", "domains", "diagnostics"),
    },
    "migration": {"errors", "engine", "core", "ipam", "domains", "diagnostics"},
    "importing": set(),
    "node": {
        *("schemas", "errors", "engine", "core", "ipam", "egress", "domains", "diagnostics"),
        *("targets", "migration"),
    },
    "daemon": {
        *(
            "schemas",
            "errors",
            "engine",
            "cluster",
            "core",
            "ipam",
            "egress",
            "domains",
            "targets",
            "node",
            "cni",
        ),
    },
    "cli": {
        *("schemas", "errors", "engine", "core", "ipam", "egress", "domains", "diagnostics"),
        *("targets", "node", "daemon", "cni", "importing"),
    },
}
"""The rooms, lowest first, and all that each may import of the others."""

PURE = (
    *(f"reconciler/{part}/" for part in ("core", "ipam", "egress", "domains", "diagnostics")),
    *(f"reconciler/cluster/{part}.py" for part in ("report", "events")),
    "reconciler/engine/plan.py",
    "reconciler/engine/backoff.py",
    "reconciler/migration/takeover.py",
    "reconciler/importing/translate.py",
)

DOORS = {
    "boto3": {"reconciler/targets/ec2/caller.py"},
    "botocore": {"reconciler/targets/ec2/caller.py"},
    "nftables": {"reconciler/targets/nftables/target.py"},
    "pyroute2": {"reconciler/targets/netlink/tables.py"},
    "subprocess": {
        *("reconciler/targets/ec2/caller.py", "reconciler/targets/iptables/programs.py"),
        "schemas/process.py",
    },
    "ssl": {"reconciler/cluster/api.py"},
    "watchdog": {"reconciler/daemon/triggers.py"},
    "yaml": {
        *("schemas/load.py", "schemas/manifest.py"),
        *(f"reconciler/importing/{door}.py" for door in ("stock_settings", "written")),
    },
    "prometheus_client": {"reconciler/daemon/telemetry.py"},
    "click": {
        *(
            f"reconciler/cli/{command}.py"
            for command in ("apply", "cleanup", "document", "importing", "node", "run", "status")
        ),
        *(
            f"reconciler/cli/{command}.py"
            for command in (
                "doctor",
                "connectivity",
                "explain",
                "explain_condition",
                "explain_node",
                "explained",
                "sysdump",
            )
        ),
        *(f"reconciler/cli/{part}.py" for part in ("trace", "main", "options")),
        *(f"reconciler/cli/{part}.py" for part in ("group", "reading", "report", "screen")),
    },
    "pydantic": {
        *(f"schemas/{part}.py" for part in ("answer", "check", "diff", "explain", "status")),
        "schemas/vocabulary.py",
        *(f"schemas/{part}.py" for part in ("pool", "value")),  # names of types alone
    },
}

IMPURE = {
    "asyncio",
    "concurrent",
    "datetime",
    "fcntl",
    "http",
    "io",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "uuid",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module a file imports, wherever in the file."""
    return tuple(read_imports(path))


def read_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The room a module is in; None if it is none of ours."""
    match module.split("."):
        case [("schemas" | "cni") as name, *_]:
            return name
        case ["reconciler", name, *_] if name in ARROWS:
            return name
        case _:
            return None


def files(*parts: str) -> list[Path]:
    return [p for p in SHIPPED if name(p).startswith(parts)]


def arrows() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {name: set() for name in ARROWS}
    for path in SHIPPED:
        if own := room(name(path).removesuffix(".py").replace("/", ".")):
            found[own] |= {r for i in imports(path) if (r := room(i))} - {own}
    return found


def test_every_module_is_in_a_room_and_imports_from_the_rooms_it_may() -> None:
    outside = {p.name for p in (ROOT / "reconciler").glob("*.py")}
    assert outside == {"__init__.py", "__main__.py", "errors.py"}
    assert {p.parent.name for p in (ROOT / "reconciler").glob("*/__init__.py")} < set(ARROWS)
    assert arrows() == ARROWS


def test_arrows_between_rooms_go_down_only() -> None:
    rooms = list(ARROWS)
    for own, others in ARROWS.items():
        assert others <= set(rooms[: rooms.index(own)]), own


def test_targets_import_each_other_without_a_circle() -> None:
    def part(module: str) -> str:
        return module.removeprefix("reconciler.targets.").split(".")[0]

    left: dict[str, set[str]] = {}
    for path in files("reconciler/targets/"):
        used = {part(i) for i in imports(path) if i.startswith("reconciler.targets.")}
        own = part(name(path).removesuffix(".py").replace("/", "."))
        left.setdefault(own, set()).update(used)
    while left:
        free = [own for own, used in left.items() if not (used - {own}) & left.keys()]
        assert free, left
        for own in free:
            del left[own]


def test_the_engine_knows_no_domain_and_no_library() -> None:
    known = {i.split(".")[0] for p in files("reconciler/engine/") for i in imports(p)}
    assert known <= {
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "itertools",
        "math",
        "operator",
        "typing",
        "reconciler",
    }


NO_DOMAIN = {"inputs", "left_out", "snat", "nat_rules", "nat_objects"}
"""What is beside the domains because all of them, or two of them, need it."""


def test_domains_do_not_import_each_other() -> None:
    for path in files("reconciler/domains/"):
        if path.stem == "left_out":  # runs all of them
            continue
        used = {i.split(".")[2] for i in imports(path) if i.startswith("reconciler.domains.")}
        # What is called ``nat_rules`` is a part of ``nat``.
        others = {u for u in used if not u.startswith(f"{path.stem}_")}
        assert others <= NO_DOMAIN, name(path)


def test_nothing_shipped_imports_the_lab_but_the_command_line() -> None:
    users = {name(p) for p in SHIPPED for i in imports(p) if i.split(".")[0] == "lab"}
    assert users == set()  # the command line has its name


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library: str) -> None:
    users = {name(p) for p in SHIPPED for i in imports(p) if i.split(".")[0] == library}
    assert users == DOORS[library]


@pytest.mark.parametrize("path", files(*PURE), ids=name)
def test_what_decides_has_no_clock_no_disk_no_network_and_no_chance(path: Path) -> None:
    assert not {i.split(".")[0] for i in imports(path)} & IMPURE


def test_the_cni_executable_imports_five_standard_modules_and_itself() -> None:
    """``errno`` and ``time`` are built into the interpreter, and cost nothing."""
    used = {i.split(".")[0] for p in files("cni/") for i in imports(p)}
    assert used == {"__future__", "errno", "os", "socket", "sys", "time", "cni"}


def test_no_error_is_swallowed() -> None:
    """Only the two top levels, and the one boundary that all others use, catch everything."""
    found = [
        name(path)
        for path in SHIPPED
        for node in ast.walk(ast.parse(path.read_text()))
        if catches_everything(node)
    ]
    assert sorted(found) == [
        "cni/__main__.py",
        "reconciler/cli/main.py",
        "reconciler/errors.py",
    ]


def catches_everything(node: ast.AST) -> bool:
    """Also an ``__exit__`` that asks whether it was left by any exception at all."""
    match node:
        case ast.ExceptHandler(type=None):
            return True
        case ast.ExceptHandler(type=ast.Name(id="Exception" | "BaseException")):
            return True
        case ast.FunctionDef(name="__exit__"):
            return "Exception)" in ast.unparse(node)
    return False


def test_the_json_schemas_are_in_step_with_the_models() -> None:
    paths = sorted((ROOT / "schemas").glob("*.schema.json"))
    committed = "".join(p.read_text() for p in paths)
    program = (
        "import json; from schemas.__main__ import SCHEMAS\n"
        "for _, make in sorted(SCHEMAS.items()): print(json.dumps(make(), indent=2))"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert committed == made.stdout, "run 'make schema'"


def test_every_action_of_every_domain_is_exercised_by_a_contract_test() -> None:
    """A kind of object or action that no contract test names has never met its real target."""
    contracts = "".join(p.read_text() for p in (ROOT / "tests").rglob("*_contract.py"))
    actions = [a.__name__ for a in ec2_action.Ec2Action.__args__]
    objects = [
        link.EniLink,
        link.Veth,
        link.PodLink,
        address.LinkAddress,
        neighbour.Neighbour,
        route.Route,
        rule.Rule,
        sysctl.Sysctl,
        nat_objects.NftTable,
        nat_objects.NftChain,
        nat_objects.NftSet,
        nat_objects.NftCounter,
        nat_objects.NftElement,
        nat_objects.NftLink,
        core_attachment.Attachment,
        core_attachment.Cooling,
        core_attachment.Intent,
        ec2_action.Creation,
        identity.EgressIdentity,
        release.Quarantine,
        conntrack.Flow,
        conflist.Conflist,
        executable.Executable,
        boot_rule.BootRule,
        forward.ForwardAccept,
        fast_path.FlowTable,
        fast_path.FlowLink,
        *stock_objects.Leftover.__args__,
    ]
    names = actions + [o.__name__ for o in objects]
    helpers = {
        "Attachment": "attachment(",
        "Intent": "intent(",
        "AddEni": "world.reach(",
        "SetIdleTimeouts": "idle_timeouts=timeouts",  # made by the plan
    }
    missing = [
        n for n in names if f"{n}(" not in contracts and helpers.get(n, f"{n}(") not in contracts
    ]
    assert missing == []


def test_every_object_says_the_command_of_every_verb_on_one_line() -> None:
    from builders import attachment, inputs

    places = Installation("/conf", "/bin", "/shipped", "/run/node-network", "/etc/tmpfiles.d")
    now = inputs(3, (attachment(1, 1),), installation=places)
    kernel = (link, address, neighbour, route, rule, sysctl, nat)
    for module in (*kernel, fast_path, executable, conflist, boot_rule):
        for obj in module.desire(now):
            for verb in Verb:
                command = obj.command(verb)
                assert command.split()[0] in {"install", "ip", "nft", "nsenter", "rm", "sysctl"}
                assert "\n" not in command
                assert "None" not in command


def test_the_iam_policy_allows_the_calls_that_are_made_and_no_others() -> None:
    import json

    policies = [json.loads(p.read_text()) for p in (ROOT / "deploy").glob("iam-policy*.json")]
    allowed = {a for policy in policies for s in policy["Statement"] for a in s["Action"]}
    source = "".join(p.read_text() for p in (ROOT / "reconciler/targets/ec2").glob("*.py"))
    verbs = "describe|get|create|attach|detach|delete|modify|assign|unassign"
    named = set(re.findall(rf'"((?:{verbs})_[a-z0-9_]+)"', source))
    methods = named - {"delete_on_termination"}  # a field of an ENI
    made = {"ec2:" + "".join(w.capitalize() for w in m.split("_")) for m in methods}
    # Tags at creation are authorised as CreateTags (EC2 user guide, "Grant permission to tag").
    assert allowed == made | {"ec2:CreateTags"}


def test_the_daemonset_mounts_every_directory_that_it_names_to_the_reconciler() -> None:
    """Each at the host's own path: the configuration tells the host where the records are."""
    text = (ROOT / "deploy/daemonset.yaml").read_text()
    named = re.findall(r"name: NODE_NETWORK_CNI_\w+_DIR, value: ([^}]+)}", text)
    named += re.findall(r"name: NODE_NETWORK_TMPFILES_DIR, value: ([^}]+)}", text)
    assert named == ["/opt/cni/bin", "/etc/cni/net.d", "/etc/tmpfiles.d"]
    assert "{name: NODE_NETWORK_KEEP_DIR, value: /var/lib/node-network}" in text
    for directory in (*named, "/run/node-network", "/var/lib/node-network"):
        (volume,) = re.findall(rf"name: (\S+), mountPath: {directory}}}", text)
        assert f"- name: {volume}\n          hostPath: {{path: {directory}," in text


def test_every_input_in_the_table_of_inputs_has_a_bound_and_a_test_that_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.split("## Inputs and their bounds\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert len(rows) > 30
    assert {len(row) for row in rows[2:]} == {5}
    for what, _, bound, _, tests in rows[2:]:
        assert bound not in {"", "\N{EN DASH}"}, what
        for test in re.findall(r"`(\S+\.py)`", tests):
            assert (ROOT / "tests" / test).is_file(), f"{what}: {test}"


def test_nothing_committed_names_a_package_index_or_this_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    if not any(listed):
        pytest.skip("not a git checkout")
    words = (
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "registry.npm" + "js",
        "deb.debian" + ".org",
    )
    for path in filter(None, listed):
        text = (ROOT / path).read_text(errors="replace")
        assert not [w for w in words if w in text], path


MOST_LINES, MOST_METHODS, MOST_ATTRIBUTES = 400, 15, 12
REASON = "Longer than 400 lines because"
"""What the docstring of a longer module says."""

SLACK = 50
"""Lines by which a number in ``LONG_FILES`` may be above the file's own."""

LONG_FILES = {}
"""Files that are still too long, and how long they may be. Shrink this; add nothing."""

LARGE_CLASSES: dict[str, tuple[int, int]] = {}
"""Classes that are still too large: methods and attributes that they may have. Likewise."""


def attributes(node: ast.ClassDef) -> set[str]:
    """The fields of a dataclass, and all that a class's methods assign to ``self``."""
    found: set[str] = set()
    if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
        found |= {ast.unparse(f.target) for f in fields if "ClassVar" not in ast.unparse(f)}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found |= {part.attr} if getattr(part.value, "id", "") == "self" else set()
    return found


def test_no_file_is_long_without_a_reason() -> None:
    long = {}
    for path in SHIPPED:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > MOST_LINES and REASON not in (ast.get_docstring(ast.parse(text)) or ""):
            long[name(path)] = lines
    above = {p: n for p, n in long.items() if n > LONG_FILES.get(p, 0)}
    assert not above, f"split it, or say why in its docstring ({REASON!r}): {above}"
    stale = {p: long.get(p) for p, n in LONG_FILES.items() if n > long.get(p, 0) + SLACK}
    assert not stale, f"lower or remove the number in LONG_FILES: {stale}"


def test_no_class_has_many_methods_or_attributes() -> None:
    large = {}
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
                size = (sum(isinstance(m, kinds) for m in node.body), len(attributes(node)))
                if size[0] > MOST_METHODS or size[1] > MOST_ATTRIBUTES:
                    large[node.name] = size
    for which, (methods, assigned) in large.items():
        most = LARGE_CLASSES.get(which, (MOST_METHODS, MOST_ATTRIBUTES))
        limits = (max(most[0], MOST_METHODS), max(most[1], MOST_ATTRIBUTES))
        assert methods <= limits[0], f"{which} has {methods} methods"
        assert assigned <= limits[1], f"{which} has {assigned} attributes"
    stale = {c: large.get(c) for c, size in LARGE_CLASSES.items() if size != large.get(c)}
    assert not stale, f"put these numbers into LARGE_CLASSES, or remove the class: {stale}"


WORDS = {
    "keepers?": "pool controller",
    "lineup": "kernel domains",
    "narrow": "scoped",
    "world": "environment, host, node, EC2",
    "successor": "migration",
    "accounts": "drift tracker; of AWS: say AWS account",
    "silence|quieten": "conntrack flush",
    "suspects?": "change attribution",
    "struggles?|rests": "backoff, cooldown",
    "doubts?": "source disagreement; if it is not known",
    "locate": "pool status",
    "strays?|orphans?": "unrecorded or dead attachment",
    "blind": "unreadable",
    "boundless": "IPv6 prefix",
    "outlived": "superseded",
    "nobody": "none, no process, no owner; or name what does not",
    "fates?|crossing|town|nursery": "verdict, traffic matrix, scale fixture, fork server",
}
"""Words that a reader must guess, and what the field says in their place."""

WORDS_LEFT: dict[str, int] = {
    "boundless": 1,
}
"""How often each is still said. Shrink this; add nothing."""


def test_words_are_the_fields_own() -> None:
    paths = [*SHIPPED, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    texts = {name(p): p.read_text().lower() for p in paths}
    said = {}
    for words in WORDS:
        pattern = re.compile(rf"(?<![a-z])(?:{words})(?![a-z])")
        where = {path: len(pattern.findall(text)) for path, text in texts.items()}
        if where := {p: n for p, n in where.items() if n}:
            said[words] = where
    for words, where in said.items():
        most = WORDS_LEFT.get(words, 0)
        assert sum(where.values()) <= most, f"say {WORDS[words]!r} for {words!r}: {where}"
    total = {words: sum(where.values()) for words, where in said.items()}
    stale = {w: total.get(w, 0) for w, most in WORDS_LEFT.items() if most > total.get(w, 0)}
    assert not stale, f"put these numbers into WORDS_LEFT, or remove the word: {stale}"
