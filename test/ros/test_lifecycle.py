"""Transitions that take long, fail, break, and are asked for at the wrong time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from lifecycle_msgs.msg import TransitionEvent
from lifecycle_msgs.srv import ChangeState
from std_msgs.msg import String
from support.ros_probe import Probe

from thor_policy_ros.ros.lifecycle import (
    PatientLifecycleNode,
    TransitionRefusedError,
    finished_elsewhere,
)

NODE = "patient"


class Patient(PatientLifecycleNode):
    """Each step waits for its future, where one is set, and may raise."""

    def __init__(self) -> None:
        super().__init__(NODE)
        self.gates: dict[str, Future[None]] = {}
        self.raises: dict[str, Exception] = {}
        self.done: list[str] = []
        self.words = self.create_lifecycle_publisher(String, "~/words", 10)

    async def _do(self, step: str) -> None:
        if step in self.gates:
            await finished_elsewhere(self.executor, self.gates[step])
        if step in self.raises:
            raise self.raises.pop(step)
        self.done.append(step)

    async def do_configure(self) -> None:
        await self._do("configure")

    async def do_activate(self) -> None:
        await self._do("activate")

    async def do_deactivate(self) -> None:
        await self._do("deactivate")

    async def do_cleanup(self) -> None:
        await self._do("cleanup")

    async def do_shutdown(self) -> None:
        await self._do("shutdown")

    async def do_error(self) -> None:
        await self._do("error")


@pytest.fixture
def patient(probe: Probe) -> Iterator[Patient]:
    node = Patient()
    probe.host(node)
    yield node
    node.destroy_node()


def ask(probe: Probe, label: str) -> Any:
    """A transition asked for, not yet waited for."""
    client = probe.create_client(ChangeState, f"{NODE}/change_state")
    probe.wait(client.service_is_ready, "the change_state service")
    request = ChangeState.Request()
    request.transition.label = label
    return client.call_async(request)


def test_services_answer_while_configuring(probe: Probe, patient: Patient) -> None:
    patient.gates["configure"] = Future()
    answer = ask(probe, "configure")
    probe.wait(lambda: patient.state_label == "configuring", "the transition to begin")
    assert probe.state(NODE) == "configuring"
    assert not probe.transition(NODE, "shutdown"), "one transition at a time"
    assert not probe.transition(NODE, "transition_success"), "only the node ends a transition"
    assert probe.state(NODE) == "configuring" and not answer.done()
    patient.gates["configure"].set_result(None)
    probe.wait(answer.done, "the answer")
    assert answer.result().success and probe.state(NODE) == "inactive"


def test_every_transition_and_its_events(probe: Probe, patient: Patient) -> None:
    events = probe.listen(TransitionEvent, f"{NODE}/transition_event")
    probe.wait(lambda: probe.count_publishers(f"{NODE}/transition_event"), "the event topic")
    for label in ("configure", "activate", "deactivate", "activate", "deactivate", "cleanup"):
        assert probe.transition(NODE, label), label
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "shutdown")
    assert probe.state(NODE) == "finalized"
    assert patient.done == [
        *("configure", "activate", "deactivate", "activate", "deactivate", "cleanup"),
        *("configure", "shutdown"),
    ]
    probe.wait(lambda: events and events[-1].goal_state.label == "finalized", "the last event")


def test_publishers_speak_only_while_active(probe: Probe, patient: Patient) -> None:
    heard = probe.listen(String, f"{NODE}/words")
    probe.wait(lambda: patient.words.get_subscription_count(), "the subscription")
    patient.words.publish(String(data="unconfigured"))
    probe.transition(NODE, "configure")
    patient.words.publish(String(data="inactive"))
    probe.transition(NODE, "activate")
    patient.words.publish(String(data="active"))
    probe.wait(lambda: heard, "the word")
    probe.transition(NODE, "deactivate")
    patient.words.publish(String(data="inactive"))
    probe.transition(NODE, "activate")
    patient.words.publish(String(data="again"))
    probe.wait(lambda: len(heard) > 1, "the second word")
    assert [message.data for message in heard] == ["active", "again"]


def test_a_refusal_returns_to_the_state_before_with_its_reason(
    probe: Probe, patient: Patient
) -> None:
    patient.raises["configure"] = TransitionRefusedError("no such checkpoint")
    assert not probe.transition(NODE, "configure")
    assert probe.state(NODE) == "unconfigured" and "error" not in patient.done
    assert patient.last_error == "configuring: no such checkpoint"
    assert probe.transition(NODE, "configure")
    assert patient.last_error == ""


@pytest.mark.parametrize("step", ["configure", "activate", "deactivate", "cleanup"])
def test_an_exception_leads_through_do_error_to_unconfigured(
    probe: Probe, patient: Patient, step: str
) -> None:
    order = ["configure", "activate", "deactivate", "cleanup"]
    for label in order[: order.index(step)]:
        assert probe.transition(NODE, label)
    patient.raises[step] = RuntimeError("device lost")
    assert not probe.transition(NODE, step)
    assert probe.state(NODE) == "unconfigured"
    assert patient.done[-1] == "error"
    assert patient.last_error.endswith("RuntimeError: device lost")
    assert probe.transition(NODE, "configure") and probe.transition(NODE, "activate")
    assert patient.last_error == ""


def test_an_error_in_do_error_finalizes(probe: Probe, patient: Patient) -> None:
    patient.raises = {"configure": RuntimeError("one"), "error": RuntimeError("two")}
    assert not probe.transition(NODE, "configure")
    assert probe.state(NODE) == "finalized"


@pytest.mark.parametrize("label", ["activate", "deactivate", "cleanup", "no_such_transition"])
def test_an_impossible_transition_is_refused_and_the_node_lives(
    probe: Probe, patient: Patient, label: str
) -> None:
    assert not probe.transition(NODE, label)
    assert probe.state(NODE) == "unconfigured"
    assert probe.transition(NODE, "configure")


def test_start_configures_and_activates(probe: Probe, patient: Patient) -> None:
    task = patient.executor.create_task(patient.start)
    probe.wait(task.done, "the start")
    assert task.result() and probe.state(NODE) == "active"


def test_start_stops_at_a_refusal(probe: Probe, patient: Patient) -> None:
    patient.raises["configure"] = TransitionRefusedError("no")
    task = patient.executor.create_task(patient.start)
    probe.wait(task.done, "the start")
    assert not task.result() and probe.state(NODE) == "unconfigured"
