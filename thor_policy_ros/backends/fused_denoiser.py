"""Noise to actions: one program for each slot and usual step count; for others a step's program,
or the one launch that is all steps.

H horizon, A action dims of the model, W expert width.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from thor_policy_ros.backends.flow_guidance import GuidanceBuffers
from thor_policy_ros.backends.fused_network import (
    Expert,
    Flow,
    euler_step,
    expert_hidden,
    integrate,
)
from thor_policy_ros.backends.fused_programs import Programs
from thor_policy_ros.backends.fused_slot import HostArray, Slot
from thor_policy_ros.backends.fused_steps import StepTable, constants_in, row_size, step_table
from thor_policy_ros.backends.fused_weights import FusedModel
from thor_policy_ros.types import F32, Guidance


class _Steps:
    """All of one step count: its constants and its guidance, at fixed addresses."""

    def __init__(self, model: FusedModel, num_steps: int) -> None:
        config = model.config
        shape = (config.action_horizon, config.action_dim)
        self.table = step_table(model, num_steps)
        self._guidance = GuidanceBuffers(num_steps, *shape, model.device)
        self._guided = False
        self.target = self._guidance.target[0]
        self.gains = self._guidance.gains[:, 0, :, 0]

    def guide(self, guidance: Guidance | None) -> None:
        """ValueError for guidance that does not fit. Turning off what is off costs nothing."""
        if guidance is not None or self._guided:
            self._guidance.set(guidance)
        self._guided = guidance is not None


class Denoiser:
    """Owns the memory of the flow; the prefixes lie in the slots. One denoising at a time.

    counts: step counts whose steps are one program.
    """

    def __init__(
        self, model: FusedModel, expert: Expert, programs: Programs, counts: tuple[int, ...]
    ) -> None:
        config, device = model.config, model.device
        self._model = model
        self._expert = expert
        self._programs = programs
        self._counts = frozenset(counts)
        self._steps: dict[int, _Steps] = {}
        shape = (config.action_horizon, config.action_dim)
        self._noise = HostArray(shape, device)
        self._actions = torch.zeros(shape, device=device)
        self._result = HostArray(shape, device)
        width = config.action_expert.width
        self._hidden = torch.zeros(shape[0], width, device=device, dtype=model.dtype)
        self._row = torch.zeros(row_size(model.expert), device=device)
        self._step = constants_in(self._row, model.expert)

    def run(
        self, index: int, slot: Slot, noise: F32, steps: int, guidance: Guidance | None
    ) -> None:
        """Launch it; `actions` waits for the result. index: of the slot."""
        of_count = self._of_count(steps)
        of_count.guide(guidance)
        np.copyto(self._noise.array(), noise)
        ends, scratch = (self._noise.tensor, self._result.tensor), (self._actions, self._hidden)
        flow = Flow(*ends, *scratch, of_count.target, of_count.gains)
        work = partial(self._integrate, flow, of_count.table, slot)
        if steps in self._counts:
            self._programs.run(("denoise", index, steps), work)
        elif self._expert.stack is not None:
            work()
        else:
            self._step_by_step(index, slot, flow, of_count.table)
        self._noise.launched()
        self._result.launched()

    def actions(self) -> F32:
        """f32[H,A] of the denoising launched last: the one wait for the device of a frame."""
        copied: F32 = self._result.array().copy()
        return copied

    def _integrate(self, flow: Flow, table: StepTable, slot: Slot) -> None:
        integrate(self._expert, flow, table, slot.extended)

    def _step_by_step(self, index: int, slot: Slot, flow: Flow, table: StepTable) -> None:
        """Programs that are there already, whatever the step count."""
        flow.actions.copy_(flow.noise, non_blocking=True)
        for step, constants in enumerate(table.steps):
            self._row.copy_(table.rows[step])
            self._programs.run(("step", index), partial(self._one_step, flow, slot))
            euler_step(self._expert, flow, constants, step, len(table.steps))
        flow.result.copy_(flow.actions, non_blocking=True)

    def _one_step(self, flow: Flow, slot: Slot) -> None:
        expert_hidden(self._expert, flow.actions, self._step, slot.extended, flow.hidden)

    def _of_count(self, steps: int) -> _Steps:
        if steps not in self._steps:
            self._steps[steps] = _Steps(self._model, steps)
        return self._steps[steps]
