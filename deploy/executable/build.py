"""Builds the static executable: CPython's library, and the modules we need as constants in C.

Run by the distribution's own Python, whose library is linked: ``/usr/bin/python3 build.py FILE``.
Which modules are needed is read in the program itself, so no list has to be kept. The same
sources and the same Python make the same bytes.
"""

from __future__ import annotations

import ast
import marshal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = "cni.__main__"

SOCKET = '''\
"""In place of ``socket``: its C half, and the ``with`` statement.

The other half makes a member of an enumeration of every constant when it is imported.
"""
import _socket
import sys
class socket(_socket.socket):
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.close()
_socket.socket = socket
sys.modules["socket"] = _socket
'''

OS = '''\
"""In place of ``os``: its C half, and the environment as text.

The other half brings paths and abstract classes.
"""
import posix
import sys
posix.environ = {name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
                 for name, value in posix.environ.items()}
sys.modules["os"] = posix
'''

ENCODINGS = '''\
"""In place of ``encodings``: UTF-8, all there is to read and write, is the interpreter's own."""
'''

FUTURE = '''\
"""In place of ``__future__``: the compiler has seen to it."""
annotations = None
'''

STAND_INS = {"__future__": FUTURE, "encodings": ENCODINGS, "os": OS, "socket": SOCKET}

IMPORTLIB = "_frozen_importlib"  # the name by which the interpreter imports it when it starts
NEEDED = [PROGRAM, "_imp", "encodings"]
"""What nothing but C imports: the program, what freezes modules, and, where UTF-8 is malformed,
the registry of codecs."""

INITIALISERS = {"sys": "NULL"}
"""Of modules that are not initialised by ``PyInit_`` and their name (Modules/config.c.in)."""

TABLES = """\
#include <Python.h>
{codes}
static const struct _frozen modules[] = {{
{frozen}
    {{0}}
}};
{declared}
struct _inittab _PyImport_Inittab[] = {{
{built_in}
    {{0, 0}}
}};

/* CPython's library has its own modules as objects ("deep-frozen"): a megabyte of writable data,
 * most of it written to whenever the interpreter starts. The linker leaves them out where all that
 * names them is defined here (Python/frozen.c, Python/deepfreeze.c). */
static const struct _frozen none[] = {{{{0}}}};
static const struct {{ const char *name, *original; }} aliases[] = {{{{0, 0}}}};
const struct _frozen *PyImport_FrozenModules = none;
const struct _frozen *_PyImport_FrozenBootstrap = modules;
const struct _frozen *_PyImport_FrozenStdlib = none;
const struct _frozen *_PyImport_FrozenTest = none;
const void *_PyImport_FrozenAliases = aliases;
int _Py_Deepfreeze_Init(void) {{ return 0; }}
void _Py_Deepfreeze_Fini(void) {{}}
"""


def main(output: Path) -> None:
    """Build the executable at ``output``; a process that runs the one before is not disturbed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as directory:
        work = Path(directory)
        (work / "modules.c").write_text(tables())
        link([HERE / "main.c", work / "modules.c"], work / output.name)
        (work / output.name).rename(output)


def tables() -> str:
    """Return C with the tables of modules: those that are frozen, and those built in.

    Only the built-in ones that are named are linked. A shared object has no place here.
    """
    texts, built_in = modules()
    codes, frozen = [], []
    for number, (name, text) in enumerate(texts.items()):
        # Without docstrings. Tracebacks name the module, not a path of this machine.
        code = compile(text, f"<frozen {name}>", "exec", dont_inherit=True, optimize=2)
        body = marshal.dumps(code)
        content = ",".join(map(str, body))
        codes.append(f"static const unsigned char code_{number}[] = {{{content}}};")
        is_package = any(other.startswith(f"{name}.") for other in texts)
        frozen.append(
            f'    {{.name = "{name}", .code = code_{number}, .size = {len(body)}, '
            f".is_package = {int(is_package)}}},"
        )
    starts = {name: INITIALISERS.get(name, f"PyInit_{name}") for name in built_in}
    return TABLES.format(
        codes="\n".join(codes),
        frozen="\n".join(frozen),
        declared="\n".join(
            f"extern PyObject *{start}(void);" for start in starts.values() if start != "NULL"
        ),
        built_in="\n".join(f'    {{"{name}", {start}}},' for name, start in starts.items()),
    )


def modules() -> tuple[dict[str, str], list[str]]:
    """Return the text of each module that the program needs, and the names of the built-in ones.

    Raises:
        LookupError: a module is neither ours, nor built into this Python, nor has a stand-in.
    """
    texts, built_in = {IMPORTLIB: (HERE / "importing.py").read_text()}, []
    wanted = list(NEEDED)
    for name in wanted:  # which grows meanwhile
        if name in texts or name in built_in:
            continue
        if name in sys.builtin_module_names:
            built_in.append(name)
            continue
        texts[name] = STAND_INS.get(name) or source(name)
        wanted += imported(texts[name])
    return texts, built_in


def source(name: str) -> str:
    """Return the text of a module of ours."""
    place = ROOT.joinpath(*name.split("."))
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.exists():
            return path.read_text()
    raise LookupError(f"{name}: neither ours, nor built into this Python, nor has it a stand-in")


def imported(text: str) -> Iterator[str]:
    """Name all modules that a module imports, and their packages."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if (ROOT / node.module).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def link(sources: list[Path], output: Path) -> None:
    """Compile and link statically, against the library of the Python that runs this."""
    variables = sysconfig.get_config_vars()
    library = Path(variables["LIBPL"], variables["LIBRARY"])
    include = f"-I{sysconfig.get_path('include')}"
    # Resolving host names would need glibc's shared libraries (the linker warns); nobody does.
    flags = ["-O2", "-static", "-s", "-Wl,--no-warnings"]
    words = ["gcc", *flags, include, *map(str, sources), str(library), "-lm", "-o", str(output)]
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
