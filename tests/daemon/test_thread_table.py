"""The table of threads, fields and locks, held against the code.

By reading it, not by running it: an access without its lock is found however seldom two threads
meet there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from reconciler.daemon.threads import ONCE, ONE, STEPS, TABLE, THREADS, WHOLE, Shared

ROOT = Path(__file__).parents[2] / "reconciler"

PRIMITIVES = {
    *(
        f"threading.{name}"
        for name in (
            "Lock",
            "RLock",
            "Condition",
            "Event",
            "Thread",
            "Timer",
            "Semaphore",
            "local",
        )
    ),
    *("SimpleQueue", "Queue", "deque"),
}

CHANGES = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
    *("popleft", "remove", "setdefault", "update", "difference_update", "intersection_update"),
}
"""What changes a container."""

Classes = dict[str, ast.ClassDef]
Outside = dict[str, list[tuple[str, ast.Attribute]]]
"""Accesses to fields of other objects: the module, and where in it."""


def sources() -> dict[str, ast.Module]:
    """Each module below ``reconciler``, by its name there."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    }


def classes_of(modules: dict[str, ast.Module]) -> Classes:
    return {
        f"{module}.{node.name}": node
        for module, tree in modules.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def methods_of(cls: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {m.name: m for m in cls.body if isinstance(m, ast.FunctionDef)}


def field_of(node: ast.AST) -> str | None:
    """The field that ``self.field`` names."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else None
    return None


def accesses(node: ast.AST, lock: str, *, held: bool) -> Iterator[tuple[ast.Attribute, bool]]:
    """Yield every ``self.something`` with whether it is under the lock."""
    if isinstance(node, ast.With):
        for item in node.items:
            yield from accesses(item.context_expr, lock, held=held)
        inside = held or any(field_of(item.context_expr) == lock for item in node.items)
        for statement in node.body:
            yield from accesses(statement, lock, held=inside)
        return
    if isinstance(node, ast.FunctionDef):
        held = False  # it may run at any time; a lambda is what a condition waits for
    if field_of(node) is not None:
        assert isinstance(node, ast.Attribute)
        yield node, held
    for child in ast.iter_child_nodes(node):
        yield from accesses(child, lock, held=held)


def unlocked(row: Shared, cls: ast.ClassDef) -> Iterator[str]:
    """What touches a field, or calls a method that does, without the lock."""
    guarded = {*row.fields, *row.held}
    free = {"__init__", *row.besides}
    for name, method in methods_of(cls).items():
        if name in free:
            continue
        for statement in method.body:
            for access, held in accesses(statement, row.lock, held=name in row.held):
                if access.attr in guarded and not held:
                    yield f"{row.cls}.{name}: {access.attr} without {row.lock}"


def written(method: ast.FunctionDef) -> dict[str, str]:
    """The fields that a method assigns ("="), or of which it changes the content ("()")."""
    found: dict[str, str] = {}
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            if name := field_of(node):
                found[name] = "="
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            if name := field_of(node.value):
                found.setdefault(name, "()")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = field_of(node.func.value)
            if name and node.func.attr in CHANGES:
                found.setdefault(name, "()")
    return found


def not_whole(row: Shared, cls: ast.ClassDef) -> Iterator[str]:
    """What replaces a value beside its writer, changes it in its place, or reads it twice."""
    for name, method in methods_of(cls).items():
        changes = written(method)
        reads = [
            field_of(node)
            for node in ast.walk(method)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        ]
        for field in row.fields:
            if changes.get(field) == "()":
                yield f"{row.cls}.{name}: {field} is changed in its place"
            elif name in (*row.held, "__init__"):
                continue
            elif field in changes:
                yield f"{row.cls}.{name}: {field} is replaced beside its writer"
            elif row.lock == WHOLE and reads.count(field) > 1:
                yield f"{row.cls}.{name}: {field} is read twice"


def reassigned(row: Shared, cls: ast.ClassDef) -> Iterator[str]:
    """What replaces an object that is there for its whole life."""
    for name, method in methods_of(cls).items():
        for field in row.fields:
            if name != "__init__" and written(method).get(field) == "=":
                yield f"{row.cls}.{name}: {field} is assigned again"


def others_fields(modules: dict[str, ast.Module]) -> Outside:
    """Find each ``something.field`` that is not ``self.field``, by the field's name."""
    found: Outside = {}
    for module, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and field_of(node) is None:
                found.setdefault(node.attr, []).append((module, node))
    return found


def from_outside(row: Shared, outside: Outside) -> Iterator[str]:
    """What touches a guarded field of another object, or replaces another's value."""
    for field in row.fields:
        for module, node in outside.get(field, ()):
            if field.startswith("_") or not isinstance(node.ctx, ast.Load):
                yield f"{module}:{node.lineno}: {ast.unparse(node)} from outside of {row.cls}"


def stale(row: Shared, cls: ast.ClassDef) -> Iterator[str]:
    """What the table names and the class has not."""
    names = {field_of(node) for node in ast.walk(cls)}
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    lock = () if row.lock in (WHOLE, ONCE, STEPS, ONE) else (row.lock,)
    methods = {*row.held, *row.besides}
    for name in {*row.fields, *lock} - names:
        yield f"{row.cls} has no field {name}"
    for name in methods - methods_of(cls).keys():
        yield f"{row.cls} has no method {name}"
    for letter in set(row.threads) - THREADS.keys():
        yield f"{row.cls}: no thread {letter}"


def missing(table: Sequence[Shared], classes: Classes) -> Iterator[str]:
    """Classes with a primitive, and fields that change in classes of the table, without a row."""
    known: dict[str, set[str]] = {}
    for row in table:
        known.setdefault(row.cls, set()).update(row.fields)
    for name, cls in classes.items():
        if name not in known:
            if primitive := primitive_of(cls):
                yield f"{name} has a {primitive} and no row"
            continue
        for method in methods_of(cls).values():
            if method.name != "__init__":
                for field in written(method).keys() - known[name]:
                    yield f"{name}.{method.name}: {field} has no row"


def primitive_of(cls: ast.ClassDef) -> str | None:
    """The primitive of ``threading`` or ``queue`` that a field of a class is."""
    for node in ast.walk(cls):
        match node:
            case ast.Assign(targets=targets, value=ast.Call(func=made)):
                pass
            case ast.AnnAssign(target=target, value=ast.Call(func=made)):
                targets = [target]
            case _:
                continue
        kind = ast.unparse(made)
        if kind in PRIMITIVES and any(field_of(target) for target in targets):
            return kind
    return None


def violations(modules: dict[str, ast.Module], table: Sequence[Shared]) -> list[str]:
    """All that the code does and the table forbids, or does not know."""
    classes = classes_of(modules)
    outside = others_fields(modules)
    found = list(missing(table, classes))
    rules = {WHOLE: not_whole, ONCE: not_whole, STEPS: reassigned, ONE: lambda *_: iter(())}
    for row in table:
        cls = classes.get(row.cls)
        if cls is None:
            found.append(f"there is no {row.cls}")
            continue
        found += stale(row, cls)
        found += rules.get(row.lock, unlocked)(row, cls)
        found += from_outside(row, outside)
    return found


def test_every_field_that_two_threads_touch_is_touched_as_the_table_says() -> None:
    assert "\n".join(violations(sources(), TABLE)) == ""


CORRECT = """\
    class Box:
        def __init__(self):
            self._lock = threading.Condition()
            self._items = []
            self.latest = None
            self._ended = threading.Event()

        def put(self, item):
            with self._lock:
                self._items.append(item)
                self._tell()
                self._lock.wait_for(lambda: not self._items)
            self.latest = item

        def _tell(self):
            return len(self._items)

        def show(self):
            return self.latest
"""

ROWS = (
    Shared("box.Box", "_lock", ("_items",), "KP", held=("_tell",)),
    Shared("box.Box", WHOLE, ("latest",), "KP", held=("put",)),
    Shared("box.Box", STEPS, ("_ended",), "KP"),
)


def check(source: str, table: Sequence[Shared] = ROWS) -> list[str]:
    return violations({"box": ast.parse(dedent(source))}, table)


def test_a_class_that_keeps_to_the_table_is_found_correct() -> None:
    assert check(CORRECT) == []


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("def count(self): return len(self._items)", "box.Box.count: _items without _lock"),
        ("def tell(self): self._tell()", "box.Box.tell: _tell without _lock"),
        ("def hand(self): return self._tell", "box.Box.hand: _tell without _lock"),
        (
            "def late(self):\n"
            "            with self._lock:\n"
            "                def count(): return self._items\n"
            "            return count",
            "box.Box.late: _items without _lock",
        ),
        (
            "def wrong(self):\n            with self._other: self._items.clear()",
            "box.Box.wrong: _items without _lock",
        ),
        (
            "def steal(self, other):\n            with self._lock: other._items.clear()",
            "box:22: other._items from outside of box.Box",
        ),
        ("def reset(self): self.latest = None", "box.Box.reset: latest is replaced beside"),
        ("def both(self): return self.latest, self.latest", "box.Box.both: latest is read twice"),
        ("def fill(self): self.latest[0] = 1", "box.Box.fill: latest is changed in its place"),
        ("def again(self): self._ended = 1", "box.Box.again: _ended is assigned again"),
        ("def mark(self): self._new = 1", "box.Box.mark: _new has no row"),
    ],
)
def test_what_does_not_keep_to_it_is_named(method: str, told: str) -> None:
    (found,) = check(f"{CORRECT}\n        {method}\n")
    assert found.startswith(told)


def test_a_class_with_a_lock_and_no_row_is_named_and_so_is_a_row_of_no_class() -> None:
    assert check(CORRECT, ()) == ["box.Box has a threading.Condition and no row"]
    assert check("", ROWS[:1]) == ["there is no box.Box"]
    renamed = CORRECT.replace("_items", "_things")
    assert "box.Box has no field _items" in check(renamed, ROWS)


def test_the_walkthrough_names_every_thread() -> None:
    page = (ROOT.parent / "docs/walkthrough.md").read_text().replace("`", "")
    rows = page.split("## Which thread runs what")[1].split("**Which one")[0]
    named = "".join(line.split("|")[1] for line in rows.splitlines() if line.startswith("|"))
    words = {"F": "observer and emitters", "H": "health (--listen), metrics", "T": "a timer"}
    missing = [
        text
        for letter, text in THREADS.items()
        if words.get(letter, text.partition(":")[0]) not in named
    ]
    assert missing == []
