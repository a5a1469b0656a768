"""A node of the test's own: waits for events, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy

T = TypeVar("T")
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
# Generous: a busy machine takes longer, a broken node is reported at the end of it.
PATIENCE_S = 40.0
ANSWER_S, ASKED_AGAIN = 5.0, 3
ACQUAINTANCE_S = 0.2


class Probe(Node):
    """Spins only inside `wait`. Use as a context manager."""

    def __init__(self, name: str = "probe") -> None:
        super().__init__(name)
        self._spinner = SingleThreadedExecutor()
        self._spinner.add_node(self)
        self.diagnostics: dict[str, DiagnosticStatus] = {}
        self._known: dict[str, Any] = {}
        self.alive: Callable[[], None] = lambda: None
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.shutdown()
        self.destroy_node()

    def host(self, node: Node) -> None:
        """Spins `node` too, in the test's own process."""
        self._spinner.add_node(node)

    def release(self, node: Node) -> None:
        """Ends a hosted node, so that another may have its name."""
        self._spinner.remove_node(node)
        node.destroy_node()

    def wait(self, condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
        """Spins until `condition()` is true and returns it; fails naming `what` and the last
        diagnostics otherwise."""
        deadline = time.monotonic() + patience_s
        while not (found := condition()):
            self.alive()
            if time.monotonic() > deadline:
                last = {name: status.message for name, status in self.diagnostics.items()}
                raise AssertionError(f"waited {patience_s} s for {what}; diagnostics: {last}")
            self._spinner.spin_once(timeout_sec=0.05)
        return found

    def spin_for(self, seconds: float) -> None:
        """For what must not happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._spinner.spin_once(timeout_sec=0.02)

    def listen(self, kind: Any, topic: str) -> list[Any]:
        """Everything published from now on, growing while the probe waits."""
        messages: list[Any] = []
        self.create_subscription(kind, topic, messages.append, RELIABLE)
        return messages

    def call(self, kind: Any, service: str, request: Any, again: bool = True) -> Any:
        """The response. again: ask again after a while; not for what must happen once."""
        client = self._client(kind, service)
        future = client.call_async(request)
        for _ in range(ASKED_AGAIN if again else 0):
            if self._spinner_saw(future.done, ANSWER_S):
                return future.result()
            future = client.call_async(request)
        self.wait(future.done, f"an answer of {service}")
        return future.result()

    def _client(self, kind: Any, service: str) -> Any:
        """A client whom the server knows: a server drops its answer to one whom it does not,
        and knowing takes longer on its side than `service_is_ready` waits for."""
        if service not in self._known:
            client = self.create_client(kind, service)
            self.wait(client.service_is_ready, f"service {service}")
            self.spin_for(ACQUAINTANCE_S)
            self._known[service] = client
        client = self._known[service]
        self.wait(client.service_is_ready, f"service {service}")
        return client

    def _spinner_saw(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self.alive()
            self._spinner.spin_once(timeout_sec=0.05)
        return condition()

    def diagnosis(
        self, name: str, level: bytes, text: str = "", patience_s: float = PATIENCE_S
    ) -> dict[str, str]:
        """Waits for a status with this level and text; its values by key."""

        def found() -> DiagnosticStatus | None:
            status = self.diagnostics.get(name)
            return status if status and status.level == level and text in status.message else None

        status = self.wait(found, f"{name} at level {level!r} saying {text!r}", patience_s)
        return {value.key: value.value for value in status.values}

    def set_parameter(self, node: str, name: str, value: Any) -> SetParametersResult:
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.call(SetParameters, f"{node}/set_parameters", request).results[0]

    def transition(self, node: str, label: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        answer = self.call(ChangeState, f"{node}/change_state", request, again=False)
        return bool(answer.success)

    def state(self, node: str) -> str:
        return str(self.call(GetState, f"{node}/get_state", GetState.Request()).current_state.label)

    def now_s(self) -> float:
        return float(self.get_clock().now().nanoseconds * 1e-9)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.diagnostics.update({status.name: status for status in message.status})


def init_ros() -> None:
    if not rclpy.ok():
        rclpy.init(args=[])
