"""Links: what only examples show well."""

from __future__ import annotations

from builders import attachment, document, inputs

from reconciler.domains import link
from reconciler.domains.link import Veth


def test_the_kernel_need_not_look_at_sources_where_the_ruleset_does() -> None:
    for spoofing, accepted in (("deny", True), ("allow", False)):
        now = inputs(1, (attachment(1),), document=document(pods={"spoofing": spoofing}))
        (veth,) = [o for o in link.desire(now) if isinstance(o, Veth)]
        assert veth.accept_local is accepted
