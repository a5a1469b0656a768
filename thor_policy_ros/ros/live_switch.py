"""Changes the backend of a configured policy node while it runs.

The executor's thread decides (`BackendSwitch`); a loader thread loads, warms up, verifies and
closes; the inference thread hands over between two frames. Where memory does not allow two
engines the running one is closed first, and no chunk comes until the new one is verified: the
chunk executor holds, then stops.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any

from rclpy.executors import Executor
from rclpy.task import Task

from thor_policy_ros.backends.registry import spec_of
from thor_policy_ros.ros.frame_loop import FrameLoop
from thor_policy_ros.ros.inference_thread import InferenceThread
from thor_policy_ros.ros.lifecycle import finished_elsewhere
from thor_policy_ros.ros.verified_loading import LoadedPolicy, Say
from thor_policy_ros.runtime.backend_switch import (
    BackendSwitch,
    Load,
    fits_beside,
    is_variant,
    with_reuse,
)
from thor_policy_ros.runtime.gpu_errors import release_unused_memory
from thor_policy_ros.runtime.policy_runner import PolicyRunner

if TYPE_CHECKING:
    from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

Loader = Callable[[str, Say], LoadedPolicy]
"""Backend's name and a teller of progress -> a verified policy. In the loader thread."""


class LiveSwitch:
    """From configure to cleanup. All methods are called in the executor's thread and return at
    once; `loaded` is what runs, None during a pause.

    load: called in the loader thread. runner_of: called in the inference thread.
    mode: 'beside', 'pause' or 'auto', asked at every load.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        executor: Executor,
        inference: InferenceThread,
        loop: FrameLoop,
        runner_of: Callable[[UnifiedPolicy], PolicyRunner],
        load: Loader,
        mode: Callable[[], str],
    ) -> None:
        name = loaded.policy.spec.name
        self.loaded: LoadedPolicy | None = loaded
        self.state = BackendSwitch(name, lambda one, two: is_variant(spec_of(one), spec_of(two)))
        self.progress = ""
        self.pause_reason = ""
        self.switches = 0
        self._executor = executor
        self._inference = inference
        self._loop = loop
        self._runner_of = runner_of
        self._load = load
        self._mode = mode
        self._reuse_every = 0
        self._abandoned = threading.Event()
        self._loader: InferenceThread | None = None
        self._loading = False
        self._begun: tuple[Task, Coroutine[Any, Any, None]] | None = None

    def request(self, name: str) -> None:
        """Replaces every request before."""
        self.state.request(name)
        self._advance()

    def set_reuse(self, reuse_every: int) -> None:
        """Refill every so many ticks, now and with later backends; 0 is the name's own."""
        self._reuse_every = reuse_every
        if self.loaded is not None:
            self._respec(self.loaded.policy)

    def abandon(self) -> LoadedPolicy | None:
        """Returns what runs, for the node to free; a load under way is freed when it ends."""
        self._abandoned.set()
        loaded, self.loaded = self.loaded, None
        self._forget_what_waits()
        self._end_loader()
        return loaded

    def join(self, timeout_s: float) -> bool:
        """After `abandon`: true when the loader thread has ended."""
        return self._loader is None or self._loader.join(timeout_s)

    def _advance(self) -> None:
        while (step := self.state.next_step()) is not None:
            if isinstance(step, Load):
                self._loading = True
                steps = self._run_load(step.name)
                self._begun = self._executor.create_task(steps), steps
            elif self.loaded is not None:
                self._respec(self.loaded.policy)
                self.switches += 1
        if self.state.lost:
            reason = f"backend: none could be loaded: {self.state.failure}"
            self._inference.call(lambda: self._loop.pause(reason))

    def _forget_what_waits(self) -> None:
        """A load that the executor has not begun never begins: the executor may spin no more."""
        if self._begun is not None and getcoroutinestate(self._begun[1]) == CORO_CREATED:
            task, steps = self._begun
            task.cancel()
            steps.close()
            self._loading = False

    def _end_loader(self) -> None:
        if self._loader is not None and not self._loading:
            self._loader.end()

    def _respec(self, policy: UnifiedPolicy) -> None:
        name = self.state.active
        spec = with_reuse(spec_of(name), self._reuse_every)

        def apply() -> None:
            policy.spec = policy.backend.spec = spec
            self._loop.rename(name)

        self._inference.call(apply)

    async def _run_load(self, name: str) -> None:
        if self._loader is None:
            self._loader = InferenceThread("backend loader", lambda error: None)
        if self.loaded is not None:
            self.pause_reason = self._reason_to_pause(name, self.loaded.policy)
        if self.pause_reason and self.loaded is not None:
            await self._close_running()
        self._loop.load_under_way = True
        try:
            loaded = await self._finished(self._loader.call(lambda: self._load(name, self._say)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the running backend goes on
            self.state.failed(f"{name}: {error}" if str(error) else f"{name}: {error!r}")
            await self._finished(self._loader.call(release_unused_memory))
        else:
            await self._hand_over_or_close(loaded, self._loader)
        self.progress = ""
        self._loading = self._loop.load_under_way = False
        if self._abandoned.is_set():
            self._end_loader()
        else:
            self._advance()

    async def _hand_over_or_close(self, loaded: LoadedPolicy, loader: InferenceThread) -> None:
        """The engine that is not used from now on is closed in the loader thread."""
        unused: LoadedPolicy | None = loaded
        if self._abandoned.is_set() or not self.state.loaded():
            self.state.dropped()
        else:
            unused = await self._hand_over(loaded)
        if unused is not None:
            await self._finished(loader.call(unused.policy.close))

    async def _hand_over(self, loaded: LoadedPolicy) -> LoadedPolicy | None:
        """Returns what ran until now."""
        old, self.loaded = self.loaded, loaded
        self.state.handed_over()
        self.switches += 1
        self.pause_reason = ""
        policy, name = loaded.policy, self.state.active
        policy.spec = with_reuse(spec_of(name), self._reuse_every)
        await self._finished(
            self._inference.call(lambda: self._loop.hand_over(self._runner_of(policy), name))
        )
        return old

    async def _close_running(self) -> None:
        assert self.loaded is not None
        policy, self.loaded = self.loaded.policy, None
        self.state.paused()

        def close() -> None:
            self._loop.pause(f"backend: {self.pause_reason}")
            policy.close()

        await self._finished(self._inference.call(close))

    def _reason_to_pause(self, name: str, running: UnifiedPolicy) -> str:
        """Why the running backend is closed before `name` loads; '' where both fit."""
        mode = self._mode()
        if mode == "pause":
            return f"paused while {name} loads, as switch_mode says"
        if mode == "beside":
            return ""
        free, used = device_memory(getattr(running.backend, "device", None))
        used += getattr(running.backend, "bytes_outside_torch", 0)
        if fits_beside(free, used):
            return ""
        return (
            f"paused while {name} loads: {free / 1e9:.1f} GB are free on the GPU and the running"
            f" backend takes {used / 1e9:.1f} GB"
        )

    def _say(self, progress: str) -> None:
        """In the loader thread."""
        self.progress = progress

    async def _finished(self, future: Any) -> Any:
        return await finished_elsewhere(self._executor, future)


def device_memory(device: Any) -> tuple[int, int]:
    """(free bytes, bytes that this process's tensors take) on a CUDA device; (1, 0) elsewhere,
    where two engines always fit."""
    if getattr(device, "type", "cpu") != "cuda":
        return 1, 0
    import torch

    free = torch.cuda.mem_get_info(device)[0]
    used = torch.cuda.memory_allocated(device)
    return free + torch.cuda.memory_reserved(device) - used, used
