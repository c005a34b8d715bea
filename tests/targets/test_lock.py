"""One reconciler for each network namespace; each case in a namespace of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel

HEAD = """\
import os, signal, socket, subprocess, sys, time
from reconciler.errors import LockedError
from reconciler.targets.lock import NAME, PROOF, SO_RCVBUFFORCE, NamespaceLock

PROVE = f"s.setsockopt(socket.SOL_SOCKET, {SO_RCVBUFFORCE}, {PROOF}); s.bind"

HOLD = (
    "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); "
    "s.listen(1); print(flush=True); time.sleep(60)"
)

def hold(*prefix):
    program = HOLD.replace("sys.argv[1]", repr(NAME))
    program = program if prefix else program.replace("s.bind", PROVE)
    argv = [*prefix, sys.executable, "-c", program, "the holder"]
    other = subprocess.Popen(argv, stdout=subprocess.PIPE)
    other.stdout.readline()
    return other
"""


def run(program: str) -> str:
    """Return what a program prints that runs in a network namespace of its own."""
    argv = ["unshare", "--net", sys.executable, "-c", HEAD + program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_reconciler_with_another_state_directory_is_refused_and_told_who_it_is() -> None:
    text = run(
        """
other = hold()
try:
    NamespaceLock().take()
except LockedError as error:
    print(str(error).replace(str(other.pid), "THAT ONE"))
finally:
    other.kill()
"""
    )
    assert "process THAT ONE of user 0" in text
    assert "-c import socket" in text
    assert "--state-dir" in text


def test_the_lock_of_a_killed_reconciler_is_free_at_once() -> None:
    run(
        """
other = hold()
other.kill()
other.wait()
assert NamespaceLock().take() == ()
"""
    )


def test_the_lock_is_held_once_and_for_all() -> None:
    run(
        """
lock = NamespaceLock()
assert lock.take() == lock.take() == ()
if os.fork() == 0:
    try:
        NamespaceLock().take()
    except LockedError:
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
lock.release()
assert NamespaceLock().take() == ()
"""
    )


@pytest.mark.parametrize(
    "prefix",
    [
        '"setpriv", "--reuid=65534", "--clear-groups"',
        '"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"',
    ],
    ids=["of another user", "without CAP_NET_ADMIN"],
)
def test_whoever_cannot_be_a_reconciler_keeps_none_from_starting(prefix: str) -> None:
    """The name is free to anybody in the namespace: any process on the host's network."""
    text = run(
        f"""
other = hold({prefix})
lock = NamespaceLock()
(found,) = lock.take()
print(found.reason, found.message.replace(str(other.pid), "THAT ONE"))
other.kill()
other.wait()
assert lock.take() == ()
if os.fork() == 0:
    try:
        NamespaceLock().take()
    except LockedError:
        os._exit(0)
    os._exit(1)
assert os.wait()[1] == 0
"""
    )
    assert text.startswith("LockOccupied process THAT ONE")


@pytest.mark.parametrize("rights", ["--bounding-set=-net_admin", "--reuid=65534"])
@pytest.mark.parametrize("listening", [None, 0], ids=["bound only", "its queue is full"])
def test_whoever_holds_the_name_without_answering_keeps_none_from_starting(
    listening: int | None, rights: str
) -> None:
    """It need not listen, and it may fill its queue: who holds the name is told all the same."""
    text = run(
        f"""
listen = "" if {listening} is None else "s.listen({listening}); "
full = "c = [socket.socket(socket.AF_UNIX) for _ in range(4)]; "
full += "[x.setblocking(False) or x.connect_ex(s.getsockname()) for x in c]; "
HOLD = HOLD.replace("s.listen(1); ", listen and listen + full)
other = hold("setpriv", "{rights}", "--clear-groups")
try:
    (found,) = NamespaceLock().take()
    print(found.reason, found.message)
finally:
    other.kill()
"""
    )
    assert text.startswith("LockOccupied")
    assert f"of user {65534 if 'reuid' in rights else 0} " in text


def test_a_root_without_rights_whose_process_is_not_seen_keeps_none_from_starting() -> None:
    """The daemon's container has processes of its own: those of the host have no number there."""
    text = run(
        """
other = hold("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
seek = "from reconciler.targets.lock import *; print(NamespaceLock().take()[0])"
try:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", seek]
    subprocess.run(argv, check=True)
finally:
    other.kill()
"""
    )
    assert "process ? of user 0" in text
    assert "cannot be a reconciler" in text


def test_a_reconciler_whose_queue_is_full_is_one_all_the_same() -> None:
    run(
        """
lock = NamespaceLock()
assert lock.take() == ()
for _ in range(20):
    if os.fork() == 0:
        try:
            NamespaceLock().take()
        except LockedError:
            os._exit(0)
        os._exit(1)
    assert os.wait()[1] == 0
"""
    )
