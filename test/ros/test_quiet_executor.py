"""The nodes' executor: it serves as rclpy's does, and looks for work once for each callback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from std_msgs.msg import Empty
from std_srvs.srv import Trigger

from thor_policy_ros.ros.quiet_executor import QuietExecutor

LIMIT_S = 10.0


class CountingExecutor(QuietExecutor):
    """Counts how often one entity is gathered for a wait."""

    counted: object = None
    looks = 0

    def can_execute(self, entity: object) -> bool:
        found = super().can_execute(entity)
        self.looks += found and entity is self.counted
        return found


@pytest.fixture
def node() -> Iterator[Node]:
    node = rclpy.create_node("quiet")
    yield node
    node.destroy_node()


@pytest.fixture
def executor(node: Node) -> Iterator[CountingExecutor]:
    executor = CountingExecutor()
    executor.add_node(node)
    yield executor
    executor.shutdown()


def spin_until(executor: QuietExecutor, done: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline_s, "nothing more was served"
        executor.spin_once(timeout_sec=0.5)


def test_one_look_for_each_callback(node: Node, executor: CountingExecutor) -> None:
    served: list[float] = []
    executor.counted = node.create_timer(0.01, lambda: served.append(time.monotonic()))
    spin_until(executor, lambda: len(served) >= 2)
    before = executor.looks
    spin_until(executor, lambda: len(served) >= 22)
    assert executor.looks - before <= 25, "rclpy's own looks twice, which is 40"


def test_a_publisher_that_does_not_fit_is_told_all_the_same(
    node: Node, executor: CountingExecutor
) -> None:
    """Its event is looked at once a second, not before every wait."""
    told: list[object] = []
    events = SubscriptionEventCallbacks(incompatible_qos=told.append)
    wants = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    offers = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    heard = node.create_subscription(
        Empty, "~/heard", lambda _: None, wants, event_callbacks=events
    )
    executor.counted = heard.event_handlers[0]
    ticks: list[int] = []
    node.create_timer(0.01, lambda: ticks.append(executor.looks))
    spin_until(executor, lambda: len(ticks) >= 50)
    assert executor.looks <= 3
    node.create_publisher(Empty, "~/heard", offers)
    spin_until(executor, lambda: told)


def test_a_task_of_another_thread_wakes_it(executor: CountingExecutor) -> None:
    called = threading.Event()
    threading.Timer(0.1, lambda: executor.create_task(called.set)).start()
    begun_s = time.monotonic()
    while not called.is_set() and time.monotonic() < begun_s + LIMIT_S:
        executor.spin_once(timeout_sec=LIMIT_S)
    assert time.monotonic() - begun_s < LIMIT_S / 2


def test_others_are_served_while_a_callback_waits(node: Node, executor: CountingExecutor) -> None:
    """One that waits holds its own group alone, and frees it at its end."""
    released, ends, ticks = Future(), list[str](), list[int]()

    async def patient(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        await released
        ends.append("patient")
        response.success = True
        return response

    group = ReentrantCallbackGroup()
    node.create_service(Trigger, "~/patient", patient, callback_group=group)
    client = node.create_client(Trigger, "~/patient", callback_group=group)
    assert client.wait_for_service(LIMIT_S)
    node.create_timer(0.01, lambda: ticks.append(len(ends)))
    answers = [client.call_async(Trigger.Request()) for _ in range(2)]
    spin_until(executor, lambda: len(ticks) >= 5)
    assert not any(answer.done() for answer in answers)
    threading.Timer(0.1, lambda: (released.set_result(None), executor.wake())).start()
    spin_until(executor, lambda: all(answer.done() for answer in answers))
    assert ends == ["patient"] * 2 and all(answer.result().success for answer in answers)


def test_what_a_callback_raises_leaves_the_spin(node: Node, executor: CountingExecutor) -> None:
    def broken() -> None:
        timer.cancel()
        raise RuntimeError("broken on purpose")

    timer = node.create_timer(0.01, broken)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        spin_until(executor, lambda: False)
    served: list[bool] = []
    node.create_timer(0.01, lambda: served.append(True))
    spin_until(executor, lambda: served)  # the group of the broken one is free
