"""Tells other nodes, through their `~/reset` services, that the robot was moved by hand."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from std_srvs.srv import Trigger

APPEAR_S = 1.0  # discovery of a node that runs takes less
RETRY_S = 2.0


class ResetCalls:
    """One round of calls at a time: `begin`, then `poll` until it says that all have answered.

    nodes: names, relative to the caller's namespace. A node that does not appear holds no old
    state and is not waited for; one that does not answer is asked again.
    """

    def __init__(self, node: Node, nodes: tuple[str, ...]) -> None:
        self._node = node
        self._clients = {name: node.create_client(Trigger, f"{name}/reset") for name in nodes}
        self._answers: dict[str, Any] = {}
        self._began_at_s = 0.0
        self._asked_at_s = 0.0

    def begin(self, now_s: float) -> None:
        """Asks every node. now_s: of a clock that does not stand still."""
        self._answers = dict.fromkeys(self._clients)
        self._began_at_s = self._asked_at_s = now_s

    def poll(self, now_s: float) -> bool:
        """True when every node has answered, or has not appeared."""
        again = now_s - self._asked_at_s > RETRY_S
        if again:
            self._asked_at_s = now_s
        for name, answer in list(self._answers.items()):
            if answer is not None and answer.done():
                del self._answers[name]
            elif answer is None or again:
                self._ask(name, now_s, again)
        return not self._answers

    def _ask(self, name: str, now_s: float, again: bool) -> None:
        client = self._clients[name]
        if client.service_is_ready():
            if again:
                self._node.get_logger().warning(f"{name}/reset has not answered; asking again")
            self._answers[name] = client.call_async(Trigger.Request())
        elif now_s - self._began_at_s > APPEAR_S:
            del self._answers[name]
