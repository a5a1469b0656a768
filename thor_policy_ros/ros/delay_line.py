"""Messages that leave later than they were made, in their order. Pure; the owner has the clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Publish = Callable[[Any], None]


class DelayLine:
    """A first-in, first-out wait: one message of a long delay holds up those behind it, as on a
    wire."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Publish, Any]] = deque()

    def send(self, publish: Publish, message: Any, now_s: float, delay_s: float) -> None:
        """Publish `message` when it is due; at once where nothing delays it."""
        if delay_s <= 0.0 and not self._waiting:
            publish(message)
            return
        last_due_s = self._waiting[-1][0] if self._waiting else now_s
        self._waiting.append((max(now_s + delay_s, last_due_s), publish, message))

    def flush(self, now_s: float) -> None:
        """Publish what is due by now."""
        while self._waiting and self._waiting[0][0] <= now_s:
            _, publish, message = self._waiting.popleft()
            publish(message)
