"""JSON as RFC 8259 has it, read and written with nothing but text.

In place of ``json``, whose C half Debian's static library of Python does not have, and whose other
half needs ``re``, to shorten the executable's start (docs/decisions, 33).

What is refused: everything that ``json`` refuses, and what it takes beyond the RFC (``NaN``,
``Infinity``, numbers without a finite value). Of a key that an object has twice, the last value
counts, as there. What is written is what ``json.dumps`` writes, byte by byte.
"""

from __future__ import annotations

MAX_DEPTH = 300
"""Arrays and objects within each other. Python's own limit on calls within calls is above it."""

SPACE = " \t\n\r"
NUMBER = frozenset("0123456789+-.eE")
HEX = frozenset("0123456789abcdefABCDEF")
WORDS = {"t": ("true", True), "f": ("false", False), "n": ("null", None)}

READ = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
"""What stands for a character behind a backslash."""

WRITTEN = {char: f"\\{letter}" for letter, char in READ.items() if letter != "/"}

HIGH, LOW, END = 0xD800, 0xDC00, 0xE000
"""UTF-16: where the first and the second halves of pairs begin, and where they end."""


def read(text: str) -> object:
    """Return what a text says.

    Raises:
        ValueError: it is no JSON, or nested deeper than ``MAX_DEPTH``.
    """
    ended = text + "\0"  # which stands nowhere in JSON: no look at a character is beyond the end
    value, at = _value(ended, _skip(ended, 0), 0)
    at = _skip(ended, at)
    if at != len(text):
        raise _error("nothing more", ended, at)
    return value


def write(value: object) -> str:
    """Return a value as text, in ASCII.

    Raises:
        ValueError: a number is not finite, or it is nested deeper than ``MAX_DEPTH``.
        TypeError: JSON has nothing of that type.
    """
    return _text(value, 0)


def _value(text: str, at: int, depth: int) -> tuple[object, int]:
    """Return the value that begins at a place, and the place behind it."""
    char = text[at]
    if char == '"':
        return _string(text, at + 1)
    if char in ("{", "["):
        if depth >= MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        return (_object if char == "{" else _array)(text, at + 1, depth + 1)
    if char in NUMBER:
        return _number(text, at)
    word, value = WORDS.get(char, ("", None))
    if not word or not text.startswith(word, at):
        raise _error("a value", text, at)
    return value, at + len(word)


def _object(text: str, at: int, depth: int) -> tuple[object, int]:
    found: dict[str, object] = {}
    at = _skip(text, at)
    if text[at] == "}":
        return found, at + 1
    while True:
        if text[at] != '"':
            raise _error("a key in double quotes", text, at)
        key, at = _string(text, at + 1)
        at = _skip(text, at)
        if text[at] != ":":
            raise _error("':'", text, at)
        found[key], at = _value(text, _skip(text, at + 1), depth)
        at = _skip(text, at)
        if text[at] == "}":
            return found, at + 1
        if text[at] != ",":
            raise _error("',' or '}'", text, at)
        at = _skip(text, at + 1)


def _array(text: str, at: int, depth: int) -> tuple[object, int]:
    found: list[object] = []
    at = _skip(text, at)
    if text[at] == "]":
        return found, at + 1
    while True:
        value, at = _value(text, at, depth)
        found.append(value)
        at = _skip(text, at)
        if text[at] == "]":
            return found, at + 1
        if text[at] != ",":
            raise _error("',' or ']'", text, at)
        at = _skip(text, at + 1)


def _string(text: str, at: int) -> tuple[str, int]:
    pieces: list[str] = []
    end = -1
    while True:
        if end < at:  # else the quote that was found is still ahead: each is sought once
            end = text.find('"', at)
            if end < 0:
                raise _error("an end of the string", text, at)
        slash = text.find("\\", at, end)
        piece = text[at:end] if slash < 0 else text[at:slash]
        if not piece.isprintable() and min(piece) < " ":
            raise _error("no control character", text, at)
        if slash < 0:
            pieces.append(piece)
            return "".join(pieces), end + 1
        char = READ.get(text[slash + 1])
        at = slash + 2
        if text[slash + 1] == "u":
            code, at = _code(text, at)
            if HIGH <= code < LOW and text.startswith("\\u", at):
                second, behind = _code(text, at + 2)
                if LOW <= second < END:
                    code, at = 0x10000 + ((code - HIGH) << 10) + second - LOW, behind
            char = chr(code)
        if char is None:
            raise _error("an escape", text, slash)
        pieces += piece, char


def _code(text: str, at: int) -> tuple[int, int]:
    digits = text[at : at + 4]
    if len(digits) != 4 or not HEX.issuperset(digits):
        raise _error("four hexadecimal digits", text, at)
    return int(digits, 16), at + 4


def _number(text: str, at: int) -> tuple[float, int]:
    end = at
    while text[end] in NUMBER:
        end += 1
    word = text[at:end]
    mantissa, e, exponent = word.lower().removeprefix("-").partition("e")
    whole, point, fraction = mantissa.partition(".")
    power = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    if (
        not whole.isdecimal()
        or (whole[0] == "0" and whole != "0")
        or (point and not fraction.isdecimal())
        or (e and not power.isdecimal())
    ):
        raise _error("a number", text, at)
    value = float(word) if point or e else int(word)
    if value in (float("inf"), float("-inf")):
        raise _error("a finite number", text, at)
    return value, end


def _skip(text: str, at: int) -> int:
    while text[at] in SPACE:
        at += 1
    return at


def _error(what: str, text: str, at: int) -> ValueError:
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return ValueError(f"{what} expected: line {line} column {column} (char {at})")


def _text(value: object, depth: int) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float):
        if value - value != 0:
            raise ValueError("a number is not finite")
        return repr(value)
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        pairs = [f"{_quoted(key)}: {_text(value[key], depth + 1)}" for key in value]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([_text(each, depth + 1) for each in value]) + "]"
    raise TypeError(f"JSON has no {type(value).__name__}")


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join([WRITTEN.get(char) or _escaped(char) for char in text]) + '"'


def _escaped(char: str) -> str:
    code = ord(char)
    if " " <= char <= "~":
        return char
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{HIGH + (code >> 10):04x}\\u{LOW + (code & 0x3FF):04x}"
