"""The monitor's screen, from what was heard: plain text in any width, colours where there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Column, Table
from rich.text import Text

from thor_policy_ros.ros.frame_loop import STAGES
from thor_policy_ros.ros.monitor_record import ERROR, OK, STALE, WARN, MonitorRecord

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=*#%@"
WORDS = {OK: "ok", WARN: "WARN", ERROR: "ERROR", STALE: "stale"}
STYLES = {OK: "green", WARN: "yellow", ERROR: "bold red", STALE: "dim"}
Clock = Callable[[float], str]
SILENT_S = 3.0  # a status comes once a second
FAULTS_SHOWN, FAULTS_IF_SHORT = 6, 3
HOP_WORDS = (
    ("camera_transport", "camera"),
    ("camera_decode", "decode"),
    ("camera_wait", "wait"),
    ("chunk_transport", "chunk"),
    ("chunk_handover", "taken"),
)
TALL = 30  # rows of a terminal that shows everything
NOTHING = "nothing heard yet: compare ROS_DOMAIN_ID and ROS_AUTOMATIC_DISCOVERY_RANGE on both hosts"


class Screen:
    """One picture of a record. title: the node. now_s: of the record's clock. clock: a time of
    that clock as people read it.
    """

    def __init__(self, record: MonitorRecord, title: str, now_s: float, clock: Clock) -> None:
        self._record = record
        self._title = title
        self._now_s = now_s
        self._clock = clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._record.heard:
            yield Text(f"{self._title}: {NOTHING}")
            return
        blocks = ASCII_BLOCKS if options.ascii_only else BLOCKS
        short = console.is_terminal and console.size.height < TALL
        yield Group(
            self._head(),
            self._troubles(),
            self._fine(),
            Text(),
            self._stages(),
            self._hops(),
            self._spark(blocks, max(10, min(options.max_width, 120) - 26)),
            self._decisions(),
            *([] if short else [Text()]),
            *self._faults(FAULTS_IF_SHORT if short else FAULTS_SHOWN),
        )

    def _policy_first(self, item: tuple[str, object]) -> bool:
        return not item[0].startswith(f"{self._title.lstrip('/')}: ")

    def _value(self, task: str, key: str) -> str:
        for name, status in self._record.statuses.items():
            if name.endswith(f": {task}") and key in status.values:
                return status.values[key]
        return ""

    def _head(self) -> Text:
        record, now_s = self._record, self._now_s
        text = Text(no_wrap=False)
        backend = record.frame.backend if record.frame else self._value("backend", "active")
        text.append(self._title, style="bold")
        text.append(f"  {self._value('lifecycle', 'state') or 'state unknown'}")
        text.append(f"  backend {backend or 'none'}")
        executor = self._value("execution", "state")
        if executor:
            text.append(f"  robot {executor}")
        words = self._value("instruction", "text")
        text.append(f"\ninstruction: {words}" if words else "\nno instruction")
        age = "never" if record.chunk_at_s is None else f"{now_s - record.chunk_at_s:.1f} s ago"
        text.append(
            f"\nchunks {record.chunk_rate.rate_hz(now_s):.1f}/s (last {age}), "
            f"frames {record.frame_rate.rate_hz(now_s):.1f}/s, "
            f"{record.missed_deadlines} of {record.frames} late"
        )
        if record.frame is not None:
            text.append(
                f", {record.frame.missed_ticks} ticks missed, "
                f"{record.frame.dropped_frames} images dropped"
            )
        return text

    def _stages(self) -> Table:
        columns = ["stage", "last", "p50", "p95", "p99"]
        table = Table(*(Column(c, justify="right" if c != "stage" else "left") for c in columns),
                      Column("", no_wrap=True), box=None, padding=(0, 2, 0, 0))  # fmt: skip
        quantiles, frame = self._record.latency.quantiles(), self._record.frame
        whole = quantiles["total"].p95 if "total" in quantiles else 0.0
        for stage in STAGES:
            if frame is None or stage not in quantiles:
                continue
            found = quantiles[stage]
            share = 0.0 if stage == "prefix_age" or whole <= 0 else min(found.p95 / whole, 1.0)
            figures = (frame.stages_ms[stage], found.p50, found.p95, found.p99)
            table.add_row(stage, *(f"{value:.1f}" for value in figures), "#" * round(20 * share))
        table.columns[1].header = "last ms"
        return table

    def _hops(self) -> Text:
        """The way from the camera to the robot's first command, medians, in a line of 80."""
        found = {name: q.p50 for name, q in self._record.hops.quantiles().items()}
        if self._record.frame is None or not found:
            return Text("way between the hosts: not known")
        frame = self._record.latency.quantiles()["total"].p50
        parts = [f"{label} {found[hop]:.1f}" for hop, label in HOP_WORDS if hop in found]
        parts.insert(sum(hop in found for hop, _ in HOP_WORDS[:3]), f"frame {frame:.1f}")
        if "observation_to_command" in found:
            parts.append(f"all {found['observation_to_command']:.0f}")
        return Text(" ".join(parts) + " ms", overflow="ellipsis")

    def _spark(self, blocks: str, width: int) -> Text:
        values = list(self._record.totals_ms)[-width:]
        if not values:
            return Text("no frame yet")
        top = max(values)
        text = Text(f"total {spark(values, blocks)} max {top:.1f} ms")
        if self._record.frame is not None:
            text.append(f" of {self._record.frame.deadline_ms:.0f}")
        return text

    def _decisions(self) -> Text:
        record = self._record
        if record.frame is None:
            return Text()
        counts = ", ".join(f"{kind} {count}" for kind, count in record.decisions.most_common())
        return Text(f"decisions: {counts}; last: {record.frame.decision}")

    def _troubles(self) -> Table:
        """A row for each status that is not OK, or not heard any more; they come first."""
        table = Table(Column(no_wrap=True), Column(no_wrap=True), Column(overflow="fold"),
                      box=None, show_header=False, padding=(0, 1, 0, 0))  # fmt: skip
        for name, status in sorted(self._record.statuses.items(), key=self._policy_first):
            silent_s = self._now_s - status.heard_s
            task = name.partition(": ")[2]
            if silent_s > SILENT_S:
                table.add_row(Text("SILENT", style="bold red"), task, f"for {silent_s:.0f} s")
            elif status.level != OK:
                mark = Text(WORDS.get(status.level, "?"), style=STYLES.get(status.level, ""))
                table.add_row(mark, task, Text(status.message))
        return table

    def _fine(self) -> Text:
        names = [
            name.partition(": ")[2]
            for name, status in sorted(self._record.statuses.items(), key=self._policy_first)
            if status.level == OK and self._now_s - status.heard_s <= SILENT_S
        ]
        text = Text("ok ", style=STYLES[OK]) if names else Text("nothing is ok")
        return text.append(", ".join(names), style="default")

    def _faults(self, at_most: int) -> list[Text]:
        faults = list(self._record.faults)[-at_most:]
        if not faults:
            return [Text("no fault since the monitor was started")]
        lines = [Text("last changes:")]
        for fault in reversed(faults):
            line = Text(f"{self._clock(fault.at_s)} ", no_wrap=True, overflow="ellipsis")
            line.append(WORDS.get(fault.level, "?"), style=STYLES.get(fault.level, ""))
            line.append(f" {fault.task.partition(': ')[2]}: {fault.message}")
            lines.append(line)
        return lines


def spark(values: Sequence[float], blocks: str = BLOCKS) -> str:
    """A character a value, from 0 to the highest; '?' for what is no number."""
    finite = [value for value in values if math.isfinite(value)]
    top = max([*finite, 1e-9])
    last = len(blocks) - 1
    return "".join(
        blocks[min(last, max(0, math.ceil(value / top * len(blocks)) - 1))]
        if math.isfinite(value)
        else "?"
        for value in values
    )
