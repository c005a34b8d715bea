"""Whatever others on the node do, its pods are served: one test for each input they choose.

Each under the manifest's own memory limit, with a hundred pods: every ADD is answered within five
seconds meanwhile, the daemon is not restarted, no pod loses its link or its network, and its
memory is what it was when all is over (``Neighbourhood.lives_through``).
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


def test_the_measure_itself_holds_while_nobody_is_hostile(neighbourhood: Any) -> None:
    with neighbourhood.lives_through():
        neighbourhood.serve()
