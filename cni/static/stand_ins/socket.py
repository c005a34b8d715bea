"""In place of ``socket``: its C half, and the ``with`` statement.

The other half turns every constant into a member of an enumeration when it is imported, which
takes a fifth of the time that the whole executable runs.
"""

from _socket import *
from _socket import socket as _Socket


class socket(_Socket):
    """A socket that is closed at the end of a ``with``."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
