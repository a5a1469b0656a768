"""A lifecycle node whose transitions may take minutes while its services keep answering.

rclpy runs a transition's callback inside the executor, so that nothing else is served, hides
what it raises and ends the process on a transition that is not possible. Here a transition is
a coroutine: `ros2 lifecycle get` says `configuring` while a model loads. It stands on three
protected names of rclpy (`_state_machine`, `_service_change_state`, `_managed_entities`),
unchanged from Humble to Jazzy.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.task import Future

from thor_policy_ros.runtime.gpu_errors import forget_frames

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR

Step = Callable[[], Awaitable[None]]


class TransitionRefusedError(RuntimeError):
    """A transition did not succeed for a stated, expected reason: the state stays as it was."""


class PatientLifecycleNode(LifecycleNodeMixin, Node):
    """Override the `do_...` coroutines. What they raise is logged and kept as `last_error`.

    TransitionRefusedError: FAILURE, back to the state before. Anything else: ERROR, then
    `do_error`, which leads to unconfigured, from where configure works again.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        Node.__init__(self, name, **kwargs)
        # Reentrant: get_state must be served while change_state awaits.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._service_change_state.callback = self._on_change_state
        self.last_error = ""
        self._steps: dict[int, Step] = {
            State.TRANSITION_STATE_CONFIGURING: self.do_configure,
            State.TRANSITION_STATE_ACTIVATING: self.do_activate,
            State.TRANSITION_STATE_DEACTIVATING: self.do_deactivate,
            State.TRANSITION_STATE_CLEANINGUP: self.do_cleanup,
            State.TRANSITION_STATE_SHUTTINGDOWN: self.do_shutdown,
            State.TRANSITION_STATE_ERRORPROCESSING: self.do_error,
        }

    async def do_configure(self) -> None: ...

    async def do_activate(self) -> None: ...

    async def do_deactivate(self) -> None: ...

    async def do_cleanup(self) -> None: ...

    async def do_shutdown(self) -> None: ...

    async def do_error(self) -> None: ...

    @property
    def state_label(self) -> str:
        """'unconfigured', 'configuring', 'inactive', 'active' and so on."""
        return str(self._state_machine.current_state[1])

    async def transition(self, transition_id: int) -> bool:
        """Runs one transition to its end. False when it failed or is not possible now."""
        if not self._possible(transition_id):
            self.get_logger().error(
                f"transition {transition_id} is not possible in state '{self.state_label}'"
            )
            return False
        before = LifecycleState(self._state_machine.current_state[1], 0)
        self._state_machine.trigger_transition_by_id(transition_id, True)
        outcome = await self._run_step()
        if outcome == SUCCESS:
            self._switch_publishers(before)
        self._state_machine.trigger_transition_by_label(outcome.to_label(), True)
        if outcome == ERROR:
            recovered = await self._run_step(keep_error=True)
            self._switch_publishers(before)
            self._state_machine.trigger_transition_by_label(recovered.to_label(), True)
        return bool(outcome == SUCCESS)

    async def start(self) -> bool:
        """Configure, then activate."""
        return await self.transition(Transition.TRANSITION_CONFIGURE) and await self.transition(
            Transition.TRANSITION_ACTIVATE
        )

    def _possible(self, transition_id: int) -> bool:
        if self._state_machine.current_state[0] in self._steps:
            return False  # one transition at a time
        return any(
            transition_id == available[0] for available in self._state_machine.available_transitions
        )

    async def _run_step(self, keep_error: bool = False) -> TransitionCallbackReturn:
        state_id, label = self._state_machine.current_state
        try:
            await self._steps[state_id]()
        except TransitionRefusedError as error:
            self.last_error = f"{label}: {error}"
            self.get_logger().error(self.last_error)
            return FAILURE
        except Exception as error:  # noqa: BLE001 - the state machine carries every error
            self.last_error = f"{label}: {type(error).__name__}: {error}"
            self.get_logger().error(f"{self.last_error}\n{traceback.format_exc()}")
            return ERROR
        if not keep_error:
            self.last_error = ""
        return SUCCESS

    def _switch_publishers(self, before: LifecycleState) -> None:
        """Lifecycle publishers speak in state active alone."""
        activating = self._state_machine.current_state[0] == State.TRANSITION_STATE_ACTIVATING
        for entity in self._managed_entities:
            (entity.on_activate if activating else entity.on_deactivate)(before)

    async def _on_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        transition_id = request.transition.id
        if request.transition.label:
            ids = {label: number for number, label, *_ in self._state_machine.available_transitions}
            transition_id = ids.get(request.transition.label, -1)
        response.success = await self.transition(transition_id)
        return response


async def finished_elsewhere(executor: Executor, future: Any) -> Any:
    """The result of a concurrent.futures.Future, without blocking the executor meanwhile."""
    done = Future()

    def wake(_: Any) -> None:
        done.set_result(None)
        executor.wake()

    future.add_done_callback(wake)
    await done
    try:
        return future.result()
    except Exception as error:
        forget_frames(error)  # they may hold a model, and form a cycle
        raise
