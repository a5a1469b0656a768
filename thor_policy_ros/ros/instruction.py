"""The words for the policy, as far as they are taken."""

from __future__ import annotations

from rclpy.node import Node

from thor_policy_ros.ros.diagnostics import WARN, Report
from thor_policy_ros.runtime.instruction_text import clean_instruction


class Instruction:
    """text: None before the first. What is refused changes nothing: the words before go on."""

    def __init__(self, node: Node, start: str) -> None:
        self._node = node
        self._refusal = ""
        self.text: str | None = None
        if start:
            self.take(start)

    def take(self, text: str) -> None:
        cleaned, self._refusal = clean_instruction(text)
        if self._refusal:
            self._node.get_logger().warning(self._refusal, throttle_duration_sec=5.0)
        else:
            self.text = cleaned

    def note_refusal(self, report: Report) -> None:
        if self._refusal:
            report.note(WARN, self._refusal)
