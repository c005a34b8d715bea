"""Builds the static executable: CPython's library, and the modules we need as constants in C.

Run by the distribution's own Python, whose library is linked: ``/usr/bin/python3 build.py FILE``.
Which modules are needed is found by importing the program, so nobody has to keep a list.
"""

from __future__ import annotations

import json
import marshal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import CodeType

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = "cni.__main__"

IMPORT = """
import sys
sys.path[:0] = sys.argv[1:3]
built_in, frozen, files = sys.meta_path
sys.meta_path = [built_in, files, frozen]  # a stand-in goes before what CPython has frozen
del sys.modules["codecs"], sys.modules["encodings"]  # this interpreter has started with them
for name in sys.argv[3:]:
    __import__(name)
import json  # not before: what it imports shall be the stand-in
specs = [m.__spec__ for m in sys.modules.values() if getattr(m, "__spec__", None)]
print(json.dumps([[s.name, s.origin, s.submodule_search_locations is not None] for s in specs]))
"""

PATTERNS = """
import re, _sre

class Spy:
    MAGIC = _sre.MAGIC
    def __getattr__(self, name):
        return getattr(_sre, name)
    def compile(self, pattern, flags, code, *groups):
        self.seen = (pattern, flags, [int(each) for each in code], *groups)
        return _sre.compile(pattern, flags, code, *groups)

spy = re._compiler._sre = Spy()
compiled, compile = {}, re.compile

def note(pattern, flags=0):
    spy.seen = None
    re.purge()
    made = compile(pattern, flags)
    compiled[pattern, int(flags)] = spy.seen
    return made

re.compile = note
import json
for name in ("VERBOSE", "MULTILINE", "DOTALL"):
    print(f"{name} = {int(getattr(re, name))}")
print(f"_COMPILED = {compiled!r}")
"""

RE = '''\
"""In place of ``re``: the patterns of ``json``, compiled when the executable was built."""
import _sre
%s
def compile(pattern, flags=0):
    return _sre.compile(*_COMPILED[pattern, flags])
'''

SOCKET = '''\
"""In place of ``socket``: its C half, and the ``with`` statement.

The other half makes a member of an enumeration of every constant when it is imported, which takes
a fifth of the time that the whole executable runs.
"""
import _socket
from _socket import *
class socket(_socket.socket):
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.close()
'''

OS = '''\
"""In place of ``os``: its C half, and the environment as text.

The other half brings paths and abstract classes, which take a seventh of the time that the whole
executable runs.
"""
import posix
from posix import *
environ = {name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
           for name, value in posix.environ.items()}
'''

CODECS = '''\
"""In place of ``codecs``: the marks that ``json`` looks for in bytes, of which it is given none.

"""
BOM_UTF8 = b"\\xef\\xbb\\xbf"
BOM_UTF16_LE, BOM_UTF16_BE = b"\\xff\\xfe", b"\\xfe\\xff"
BOM_UTF32_LE, BOM_UTF32_BE = BOM_UTF16_LE + b"\\0\\0", b"\\0\\0" + BOM_UTF16_BE
'''

ENCODINGS = '''\
"""In place of ``encodings``: UTF-8, all there is to read and write, is the interpreter's own."""
'''

INITIALISERS = {
    "sys": "NULL",
    "builtins": "NULL",
    "_imp": "PyInit__imp",
    "marshal": "PyMarshal_Init",
    "_warnings": "_PyWarnings_Init",
}
"""Of modules that are not initialised by ``PyInit_`` and their name (Modules/config.c.in)."""


def main(output: Path) -> None:
    """Build the executable at ``output``; a process that runs the one before is not disturbed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as directory:
        work = Path(directory)
        (work / "re.py").write_text(RE % python(PATTERNS))
        (work / "socket.py").write_text(SOCKET)
        (work / "os.py").write_text(OS)
        (work / "codecs.py").write_text(CODECS)
        (work / "encodings.py").write_text(ENCODINGS)
        places = [str(work), str(ROOT)]
        # What is wrong in UTF-8 is told by way of the registry of codecs, which imports these.
        specs = json.loads(python(IMPORT, *places, PROGRAM, "encodings"))
        (work / "modules.c").write_text(modules(specs))
        link([HERE / "main.c", work / "modules.c"], work / output.name)
        (work / output.name).rename(output)


def python(program: str, *arguments: str) -> str:
    """Run a program in this Python without its site; return what it prints."""
    command = [sys.executable, "-I", "-S", "-c", program, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def modules(specs: list[tuple[str, str | None, bool]]) -> str:
    """Return C with the tables of modules: those that are frozen, and those built in.

    Only the built-in ones that are named are linked. What CPython has frozen itself is in its
    library; a shared object has no place here, and what would use one has to do without.
    """
    code, frozen, built_in, declared = [], [], [], []
    for number, (name, origin, is_package) in enumerate(specs):
        if origin == "built-in":
            start = INITIALISERS.get(name, f"PyInit_{name}")
            built_in.append(f'    {{"{name}", {start}}},')
            declared += [f"extern PyObject *{start}(void);"] if start != "NULL" else []
        elif origin and origin.endswith(".py"):
            body = marshal.dumps(compiled(name, Path(origin)))
            content = ",".join(map(str, body))
            code.append(f"static const unsigned char code_{number}[] = {{{content}}};")
            frozen.append(
                f'    {{.name = "{name}", .code = code_{number}, .size = {len(body)}, '
                f".is_package = {int(is_package)}}},"
            )
    return "\n".join(
        [
            "#include <Python.h>",
            *code,
            "const struct _frozen node_network_modules[] = {",
            *frozen,
            "    {0}",
            "};",
            *declared,
            "struct _inittab _PyImport_Inittab[] = {",
            *built_in,
            "    {0, 0}",
            "};",
            "",
        ]
    )


def compiled(name: str, path: Path) -> CodeType:
    """Compile a module without its docstrings; tracebacks name it, not a path of this machine."""
    return compile(path.read_text(), f"<frozen {name}>", "exec", dont_inherit=True, optimize=2)


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
