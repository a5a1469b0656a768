"""The policy node with an engine that fails on demand: for `thor-policy faults` alone.

No executable, launch file or parameter leads here; it is started as a module by the faults run.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from std_msgs.msg import String

from thor_policy_ros.ros.inputs import LATCHED
from thor_policy_ros.ros.policy_node import PolicyNode
from thor_policy_ros.ros.process import run_node

FAULT_TOPIC = "fault_engine"


class FaultyPolicyNode(PolicyNode):
    """Obeys the newest word on `fault_engine`; empty is no fault."""

    def __init__(self, **kwargs: Any) -> None:
        self._fault = ""
        self._first: Any = None
        super().__init__(**kwargs)
        self.create_subscription(String, FAULT_TOPIC, self._on_fault, LATCHED)

    def _on_fault(self, message: String) -> None:
        self._fault, self._first = message.data, None

    def _make_runner(self, policy: Any, facts: Any) -> Any:
        denoise = policy.backend.denoise

        def faulty(*args: Any, **kwargs: Any) -> Any:
            return self._spoilt(denoise(*args, **kwargs))

        policy.backend.denoise = faulty
        return super()._make_runner(policy, facts)

    def _spoilt(self, actions: Any) -> Any:
        fault, _, amount = self._fault.partition(":")
        if fault == "slow":
            time.sleep(float(amount))
        elif fault == "hang":
            threading.Event().wait()
        elif fault == "raise":
            self._fault = ""
            raise RuntimeError(amount)
        elif fault in ("nan", "inf"):
            actions = np.array(actions)
            actions[-1, 0] = float(fault)
        elif fault == "constant":
            self._first = actions if self._first is None else self._first
            actions = self._first
        elif fault == "huge":
            actions = np.asarray(actions) * np.float32(1e6)
        elif fault == "shaking":
            actions = np.asarray(actions) + np.float32(3.0 * (-1.0) ** int(time.time() * 10))
        return actions


def main() -> int:
    return run_node(FaultyPolicyNode, lambda node: node.start)


if __name__ == "__main__":
    raise SystemExit(main())
