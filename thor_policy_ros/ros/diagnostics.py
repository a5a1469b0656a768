"""What the nodes say on /diagnostics, once a second, in every state.

Levels as diagnostic_msgs means them: OK, all is well; WARN, it works but look at it; ERROR, it
does not do its task; STALE, there is no recent news to judge by.
Values are plain numbers with the unit in the key, so that viewers plot them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
STALE = DiagnosticStatus.STALE

SEVERITY = (OK, WARN, STALE, ERROR)  # a known error tells more than missing news

PERIOD_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing noticed; the worst finding gives a report its level and message."""

    level: bytes
    text: str


@dataclass
class Report:
    """The state of one task of a node.

    findings: empty is OK. values: in the order shown; floats are rounded to six digits.
    """

    task: str
    fine: str = "working"
    findings: list[Finding] = field(default_factory=list)
    values: dict[str, object] = field(default_factory=dict)

    def note(self, level: bytes, text: str) -> None:
        self.findings.append(Finding(level, text))

    @property
    def level(self) -> bytes:
        return max((finding.level for finding in self.findings), key=SEVERITY.index, default=OK)

    @property
    def message(self) -> str:
        """All that was found, the worst first."""
        worst_first = sorted(self.findings, key=lambda found: -SEVERITY.index(found.level))
        return "; ".join(finding.text for finding in worst_first) or self.fine


def status_msg(node_name: str, hardware_id: str, report: Report) -> DiagnosticStatus:
    status = DiagnosticStatus(level=report.level, message=report.message)
    status.name = f"{node_name}: {report.task}"
    status.hardware_id = hardware_id
    status.values = [
        KeyValue(key=key, value=plain_text(value)) for key, value in report.values.items()
    ]
    return status


def plain_text(value: object) -> str:
    """A number as a parser reads it back; '' for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


class DiagnosticsPublisher:
    """Publishes the node's reports at 1 Hz, by the steady clock: also while ROS time stands still.

    reports: called in the executor's thread. A time jump or a pause of /clock does not stop it.
    """

    def __init__(
        self, node: Node, hardware_id: Callable[[], str], reports: Callable[[], Iterable[Report]]
    ) -> None:
        self._node = node
        self._hardware_id = hardware_id
        self._reports = reports
        self._publisher = node.create_publisher(
            DiagnosticArray, "/diagnostics", QoSProfile(depth=10)
        )
        self._timer = node.create_timer(
            PERIOD_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def publish(self) -> None:
        """Says now how things are; also called when a state changes."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip("/")
        hardware_id = self._hardware_id()
        message.status = [status_msg(name, hardware_id, report) for report in self._reports()]
        self._publisher.publish(message)


def note_missing_clock(node: Node, report: Report) -> None:
    """With use_sim_time and no /clock nothing ever happens: say so."""
    clock = node.get_clock()
    if clock.ros_time_is_active and clock.now().nanoseconds == 0:
        report.note(ERROR, "use_sim_time is set and no /clock has come")


def quantile_values(
    stage: str, quantiles_ms: Sequence[float], percents: Sequence[int] = (50, 95, 99)
) -> dict[str, object]:
    """`total_p50_ms` and so on."""
    return {
        f"{stage}_p{percent}_ms": value
        for percent, value in zip(percents, quantiles_ms, strict=True)
    }
