"""What is known of the node: who it is, what EC2 has last shown, and its effective document."""

from __future__ import annotations

from reconciler.core.facts import Node
from reconciler.errors import ConflictError, NotReadyError
from reconciler.ipam.cloud import Cloud
from reconciler.node.targets import State
from schemas.check import resolve
from schemas.document import NodeNetwork
from schemas.load import DocumentError


class Known:
    """What both loops work on; each value is replaced as a whole.

    Args:
        state: remembers it from one process to the next.

    Attributes:
        facts: identity and VPC CIDRs; None until metadata has answered once.
        cloud: the last observation of EC2, also of an earlier process; None until there was one.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._remembered: tuple[Node | None, Cloud | None] = state.recall() or (None, None)
        self.facts: Node | None = self._remembered[0]
        self.cloud: Cloud | None = self._remembered[1]
        self._resolved: tuple[NodeNetwork, Node, NodeNetwork] | None = None

    def identify(self, facts: Node) -> None:
        """Take over what metadata says the node is."""
        before, self.facts = self.facts, facts
        if before is not None and before.instance_id != facts.instance_id:
            self.cloud = None  # an image was made of another instance, with its last look in it

    def see(self, cloud: Cloud) -> None:
        """Take over an observation of EC2."""
        self.cloud = cloud

    def remember(self) -> None:
        """Keep what is known for the next process.

        Raises:
            StateError: it cannot be written.
        """
        facts, cloud = self.facts, self.cloud
        if facts is not None and cloud is not None and self._remembered != (facts, cloud):
            self._state.remember(facts, cloud)
            self._remembered = (facts, cloud)

    def observation(self) -> Cloud:
        """Return the last observation of EC2.

        Raises:
            NotReadyError: there was none yet.
        """
        if (cloud := self.cloud) is None:
            raise NotReadyError("EC2 has not been observed yet, so the node's ENIs are unknown")
        return cloud

    def identity(self) -> Node:
        """Return who the node is.

        Raises:
            NotReadyError: metadata has not answered yet.
        """
        if (facts := self.facts) is None:
            raise NotReadyError("instance metadata has not answered yet")
        return facts

    def resolve(self, document: NodeNetwork) -> NodeNetwork:
        """Apply the document's overrides for this node.

        Raises:
            NotReadyError: it is not known yet which node this is.
            ConflictError: overrides that match this node contradict each other.
        """
        facts, known = self.identity(), self._resolved
        if known is not None and known[0] is document and known[1] == facts:
            return known[2]  # of 10,000 CIDRs it takes a tenth of a second, for each pass
        try:
            resolved = resolve(
                document,
                instance_type=facts.instance_type,
                zone=facts.availability_zone,
                node_name=facts.name,
            )
        except DocumentError as error:
            raise ConflictError(str(error)) from error
        self._resolved = document, facts, resolved
        return resolved
