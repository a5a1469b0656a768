"""rclpy's executor of one thread, without waking itself after every callback.

rclpy 7.1 triggers the executor's own guard condition twice for each callback, so that other threads
of a multi-threaded executor look again at a callback group that is free now. A single thread looks
anyway, before each wait; there the trigger only ends the next wait at once, and all of a node's
entities are gathered a second time: half of what the executor costs. It stands on one protected
name of rclpy, `_make_handler`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Task


class QuietExecutor(SingleThreadedExecutor):
    """One thread spins it; `create_task` and `wake` of any thread still wake it."""

    def _make_handler(
        self, entity: Any, node: Node, take_from_wait_list: Callable[[Any], Any]
    ) -> Task:
        """A task that takes what is ready of `entity` and serves it, as the base class's."""
        entity._executor_event = True  # not waited for until it is taken
        task = Task(self._serve, (entity, take_from_wait_list), executor=self)
        with self._tasks_lock:
            self._tasks.append((task, entity, node))
        return task

    async def _serve(self, entity: Any, take_from_wait_list: Callable[[Any], Any]) -> None:
        if self._is_shutdown or not entity.callback_group.beginning_execution(entity):
            entity._executor_event = False
            return
        with self._work_tracker:
            work = take_from_wait_list(entity)
            entity._executor_event = False
            try:
                if work is not None:
                    await work()
            finally:
                entity.callback_group.ending_execution(entity)
