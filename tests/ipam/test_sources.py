"""What EC2 has answered outweighs a look that does not know of it."""

from __future__ import annotations

from ipaddress import ip_network

from builders import eni

from reconciler.ipam.sources import Answer, is_behind, overlay

NEW = frozenset({ip_network("10.0.1.77/32")})


def test_a_look_is_behind_until_it_shows_what_ec2_gave() -> None:
    gave = Answer(0.0, eni(0, 2).eni_id, added=NEW)
    told = overlay([eni(0, 2)], [gave])
    assert is_behind([eni(0, 2)], told)
    assert not is_behind(told, overlay(told, [gave]))


def test_a_look_that_still_shows_what_was_given_back_is_not_behind() -> None:
    gave = Answer(0.0, eni(0, 2).eni_id, added=NEW)
    took = Answer(1.0, eni(0, 2).eni_id, removed=NEW)
    for shown in ([eni(0, 2)], overlay([eni(0, 2)], [gave])):
        assert not is_behind(shown, overlay(shown, [gave, took]))
