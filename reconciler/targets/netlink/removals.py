"""Links that are deleted beside the loop that serves pods: the kernel takes its time with each.

RTM_DELLINK returns when no processor can see the link any more, some 20 ms later (RCU), and no pod
may wait for that. What is under way still shows in looks, so nothing that needs its end is done
before it was seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from reconciler.errors import ReconcilerError, boundary
from reconciler.targets.netlink.message import KernelError
from reconciler.targets.netlink.rtnetlink import GONE, How, Rtnetlink
from reconciler.targets.netlink.tables import LINKS


def delete_link(index: int) -> None:
    """Delete a link of this namespace; ``OSError`` if the kernel refuses."""
    with Rtnetlink() as host:
        host.change(LINKS, How.DELETE, (), index=index)


class Removals:
    """Which links are under way, by index: their name may be another one's by the time.

    While ``apart``, another thread takes turns; else whoever asks deletes by himself.
    """

    def __init__(self, delete: Callable[[int], None] = delete_link) -> None:
        self._delete = delete
        self._changed = threading.Condition()
        self._under_way: dict[int, str] = {}
        self._failed: set[int] = set()
        self._stopping = False
        self.apart = False

    def take(self, index: int, name: str) -> bool:
        """Take a link; return whether it will be deleted here.

        One with which that has failed is not taken again at once: whoever deletes it by himself
        hears the error.
        """
        with self._changed:
            if not self.apart or index in self._failed:
                self._failed.discard(index)
                return False
            self._under_way[index] = name
            self._changed.notify_all()
            return True

    @property
    def names(self) -> frozenset[str]:
        """The names of links that are under way."""
        with self._changed:
            return frozenset(self._under_way.values())

    def turn(self) -> bool:
        """Delete what was taken until now; return whether there was anything."""
        with self._changed:
            indices = list(self._under_way)
        for index in indices:
            failed = True
            try:
                with boundary("deletion of a link"):
                    try:
                        self._delete(index)
                        failed = False
                    except OSError as error:
                        failed = not (isinstance(error, KernelError) and error.errno in GONE)
            except ReconcilerError:
                pass  # it is heard by whoever deletes it next
            finally:
                with self._changed:
                    self._under_way.pop(index, None)
                    if failed:
                        self._failed.add(index)
        return bool(indices)

    def wait(self) -> None:
        """Wait until there is something for a turn to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way or self._stopping)

    def stop(self) -> None:
        """End ``wait``, now and ever after."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
