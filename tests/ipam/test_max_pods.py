"""How many pods kubelet should take, and when it takes too many."""

from __future__ import annotations

from typing import Any

import pytest
from builders import document

from reconciler.ipam.cloud import Limits
from reconciler.ipam.pool import MOST_PODS, advised, beyond, capacity

M5_LARGE, M5_24XLARGE = Limits(3, 10), Limits(15, 50)


@pytest.mark.parametrize(
    ("parts", "limits", "cpus", "number"),
    [
        ({}, M5_LARGE, 2, 29),  # eni-max-pods.txt: m5.large 29
        ({"eni": {"allocate": "prefixes"}}, M5_LARGE, 2, 110),  # max-pods-calculator.sh
        ({"eni": {"usePrimary": False}}, M5_LARGE, 2, 20),
        ({"eni": {"max": 2}}, M5_LARGE, 2, 20),
        ({"maxPods": 17}, M5_LARGE, 2, 17),
        ({"maxPods": 500}, M5_LARGE, 2, 29),
        ({}, M5_24XLARGE, 96, MOST_PODS),
        ({}, M5_24XLARGE, 30, 110),
        ({"families": ["ipv6"], "egressFamilies": ["ipv4"]}, M5_LARGE, 2, 110),
    ],
)
def test_it_is_what_the_type_and_the_document_allow_and_eks_advises(
    parts: dict[str, Any], limits: Limits, cpus: int, number: int
) -> None:
    wanted = document(**parts)
    assert advised(wanted, capacity(wanted, limits), cpus) == number


def test_enis_of_others_are_not_counted_on() -> None:
    wanted = document()
    assert advised(wanted, capacity(wanted, M5_LARGE, foreign=1), 2) == 20


def test_a_kubelet_that_takes_too_many_is_told_what_to_take() -> None:
    found = capacity(document(), M5_LARGE)
    assert beyond(29, "m5.large", found) == beyond(0, "m5.large", found) == ""
    assert "kubelet takes 110 pods, and m5.large can serve 29: 3 ENIs x 9" in beyond(
        110, "m5.large", found
    )
