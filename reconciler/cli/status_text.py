"""What the reconciler says of itself, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reconciler.cli.screen import DIM, GREEN, PIPE, RED, YELLOW, Screen

LABEL = 12  # columns of what a line is about
BAR = 40  # columns of the pool's bar, at most

STATES = (
    *(("assigned", "#"), ("dedicated", "="), ("cooling", "~")),
    *(("quarantined", "x"), ("allocatable", ".")),
)
"""Of addresses, and how the bar shows them."""

MOST_REPAIRS = 10  # that are shown

SCARCE = 10  # calls of an action's budget below which it is named

Body = Mapping[str, Any]


class _Line(NamedTuple):
    about: str
    text: str
    style: Mapping[str, Any] = {}


def as_text(body: Body, screen: Screen = PIPE) -> str:
    """Return a status as lines; on a terminal wrapped between words, and coloured."""
    lines: list[str] = []
    for about, text, style in _lines(body, screen):
        first, rest = f"{about:<{LABEL}} ", " " * (LABEL + 1)
        wrapped = list(screen.wrap(text, first, rest)) or [first]
        head = screen.paint(first, **DIM)
        lines.append(head + screen.paint(wrapped[0][len(first) :], **style))
        lines += (screen.paint(line, **style) for line in wrapped[1:])
    return "".join(f"{line}\n" for line in lines)


def _lines(body: Body, screen: Screen) -> Iterator[_Line]:
    yield _Line("version", f"{body['version'] or 'unknown'}, up {_span(body['uptimeSeconds'])}")
    yield from _document(body)
    yield from _conditions(body["conditions"])
    yield from map(_rule, body["snatRules"])
    yield from map(_policy, body["snat"])
    yield from _pool(body, screen)
    yield from map(_eni, body["enis"])
    for e in body["otherCards"]:
        device = "unknown" if e["device"] is None else e["device"]
        what = f"{e['id']} device {device} of network card {e['card']}"
        yield _Line("eni", f"{what}, {e['type'] or 'of an unknown type'}: not used")
    yield from map(_source, body["sources"])
    for a in body["attachments"]:
        where = f"{' '.join(a['addresses'])} on {a['eni']} ({a['veth']})"
        yield _Line("pod", f"{a['pod']}: {where}")
    yield from map(_identity, body.get("identities", ()))
    if any(body["packetsRefused"].values()):
        counted = body["packetsRefused"].items()
        yield _Line("refused", ", ".join(f"{n} packets {why}" for why, n in counted if n))
    if body["cooling"]:
        yield _Line("cooling", ", ".join(body["cooling"]))
    yield from _repairs(body["repaired"])
    ages = [f"{x['of']} {_span(x['ageSeconds'])} ago" for x in body["looks"]]
    yield _Line("looks", ", ".join(ages) or "none yet")
    yield _Line("ec2", _calls(body["ec2Calls"], body["ec2Budget"]))
    for name, number in body.get("shortened", {}).items():
        yield _Line("not shown", f"{number} more of {name}: the answer would be too long")


def _document(body: Body) -> Iterator[_Line]:
    document = body["document"]
    # The condition below says why.
    refused = "; the file has changed since and is refused" if document["refused"] else ""
    which = f"generation {document['generation']}, accepted {document['acceptedAt']}"
    yield _Line("document", f"{document['path']} ({which}{refused})", YELLOW if refused else {})
    settled, number = body["settled"], len(body["conditions"])
    held = f", {number} condition{'s' * (number > 1)}" if number else ""
    style = GREEN if settled and not number else YELLOW
    yield _Line("settled", f"{'yes' if settled else 'no'}{held}", style)
    if obstacle := body.get("obstacle"):
        yield _Line("not ready", f"{obstacle['reason']}: {obstacle['message']}", RED)


def _policy(snat: Body) -> _Line:
    whose = f"group {snat['group']}: " if snat["group"] else ""
    if snat["mode"] == "external":
        return _Line("snat", f"{whose}external: every destination sees pod addresses")
    excluded = _list(snat["excludeCIDRs"], snat["excluded"])
    kept = f"; {excluded} and the VPC see pod addresses" if excluded else ""
    only = snat["onlyCIDRs"]
    seen = "what is beyond the VPC" if only is None else _list(only, len(only))
    sees = "sees" if only is None or len(only) == 1 else "see"
    return _Line("snat", f"{whose}node: {seen} {sees} the node's address{kept}")


SEEN = {"pod": "pod addresses", "node": "the node's address", "dedicated": "its own address"}
"""By what a rule says: what destinations see of a namespace."""


def _rule(rule: Body) -> _Line:
    to = _list(rule["to"], rule["number"])
    sees = "sees" if rule["number"] == 1 else "see"
    seen = SEEN.get(rule["as"], rule["as"])
    return _Line("snat", f"namespace {rule['namespace']}: {to} {sees} {seen}")


def _pool(body: Body, screen: Screen) -> Iterator[_Line]:
    pool, limits = body["pool"], body["limits"]
    told = ", ".join(f"{pool[state]} {state} ({sign})" for state, sign in STATES if state in pool)
    addresses = limits and limits["addresses"]
    held = sum(pool.values())
    if held and addresses:
        most = max(addresses["most"], held)
        room = min(BAR, screen.width - LABEL - 3) if screen.width else BAR
        yield _Line("pool", f"{_bar(pool, most, room)} {told}, of {most}")
    else:
        yield _Line("pool", told or "not known yet")
    if (target := body["target"]) and addresses:
        soon = body["exhaustedInSeconds"]
        end = "none left" if pool.get("allocatable") else "none is free; the node is full"
        runs_out = "" if soon is None else f"; {end} in {_span(soon)} at the present rate"
        bounds = f"below {target['low']}, gives back above {target['high']}"
        yield _Line("target", f"grows {bounds}{runs_out}", {} if soon is None else YELLOW)
    if limits:
        enis, pods = limits["enis"], limits["pods"]
        near = [f"{enis['used']} of {enis['most']} ENIs"]
        if addresses:
            near.append(f"{addresses['used']} of {addresses['most']} addresses")
        of = f" of {pods['most']}" if pods["most"] is not None else ""
        near.append(f"{pods['used']}{of} pod{'s' * (pods['used'] != 1 or bool(of))}")
        text = f" ({addresses['text']})" if addresses else ""
        is_full = addresses and addresses["used"] >= addresses["most"]
        shown = f"{limits['instanceType']}: {', '.join(near)}{text}"
        yield _Line("limits", shown, YELLOW if is_full else {})


def _bar(pool: Mapping[str, int], most: int, width: int) -> str:
    """Return a bar as wide as all that may be held; what there is of a state has one column."""
    shares = {s: -(-pool.get(s, 0) * width // most) for s, _ in STATES}
    while sum(shares.values()) > width:
        shares[max(shares, key=lambda s: shares[s])] -= 1
    bar = "".join(sign * shares[state] for state, sign in STATES)
    return f"[{bar:_<{width}}]"


def _eni(e: Body) -> _Line:
    prefixes = f", {' '.join(e['prefixes'])}" if e["prefixes"] else ""
    more = prefixes + ("" if e["owned"] else ", foreign")
    more += f", group {e['group']}" if e["group"] else ""
    where = f"{e['id']} device {e['device']}, {e['status']}"
    single = f": {' '.join(e['podAddresses'])}" if e["podAddresses"] else ""
    own = f"{e['subnet']}, own {e['primary']}"
    return _Line("eni", f"{where}, {own}, {e['addresses']} addresses{more}{single}")


def _identity(i: Body) -> _Line:
    whose = i["namespace"] + (f" in group {i['group']}" if i["group"] else "")
    state = "" if i["state"] == "in use" else f", {i['state']}"
    where = f"{' '.join(i['addresses'])} on {i['eni']}"
    return _Line("identity", f"namespace {whose}: {where}{state}", YELLOW if state else {})


def _source(s: Body) -> _Line:
    age = "never" if s["ageSeconds"] is None else f"{s['ageSeconds']} s ago"
    failed = f"; since then {s['failure']}" if s["failure"] else ""
    return _Line("source", f"{s['name']}: {s['entries']} CIDRs, as EC2 told {age}{failed}")


def _repairs(repaired: Sequence[Body]) -> Iterator[_Line]:
    for repair in repaired[:MOST_REPAIRS]:
        first, count = repair["actions"][0], repair["count"]
        what = f"{repair['domain']}: {count} x {repair['kind']}" if count > 1 else repair["domain"]
        more = f", and {count - 1} more" if count > 1 else ""
        by = f"; lately at work: {', '.join(repair['by'])}" if repair["by"] else ""
        why = f"{first} ({repair['reason']}){more}{by}"
        yield _Line("repaired", f"{_span(repair['ageSeconds'])} ago: {what}: {why}", DIM)
    if (rest := len(repaired) - MOST_REPAIRS) > 0:
        yield _Line("repaired", f"{rest} earlier ones are in -o json", DIM)


def _conditions(conditions: Sequence[Body]) -> Iterator[_Line]:
    for c in conditions:
        text = str(c["text"])
        # An action's error says again what the line has already.
        for said in (c["subject"], c["reason"]):
            text = text.removeprefix(f"{said}: ")
        since = f"since {c['since']} ({_span(c['ageSeconds'])})"
        yield _Line("condition", f"{c['reason']} {since}: {c['subject']}: {text}", RED)
    if conditions:
        yield _Line("", "cause and cure of each: node-network explain condition", DIM)


def _calls(calls: Mapping[str, int], left: Mapping[str, int]) -> str:
    """Name the calls, the most frequent first; and of what budget little is left."""
    counted = sorted(calls.items(), key=lambda c: (-c[1], c[0]))
    listed = ", ".join(f"{n} {name}" for name, n in counted)
    scarce = [f"{n} more {name}" for name, n in sorted(left.items()) if n < SCARCE]
    warned = f"; its budget now allows {', '.join(scarce)}" if scarce else ""
    return f"{sum(calls.values())} calls: {listed}{warned}" if calls else "no calls"


def _list(values: Sequence[str], number: int) -> str:
    more = number - min(len(values), 4)
    return ", ".join(values[:4]) + (f" and {more} more" if more > 0 else "")


UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def _span(seconds: int) -> str:
    """Return a time in its two largest units: ``3 h 12 min``."""
    for index, (size, name) in enumerate(UNITS):
        if seconds >= size:
            smaller, unit = (*UNITS, (1, "s"))[index + 1]
            rest = seconds % size // smaller
            return f"{seconds // size} {name}" + (f" {rest} {unit}" if rest else "")
    return f"{seconds} s"
