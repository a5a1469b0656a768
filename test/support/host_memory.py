"""How much memory of its own a process takes: mapped files do not count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    """num_bytes: the most that was seen beyond the beginning."""

    num_bytes: int = 0


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


@contextmanager
def peak_memory(period_s: float = 0.002) -> Iterator[Peak]:
    """Sampled in a thread; copies of whole tensors take longer than the period."""
    begun, peak, ended = anonymous_bytes(), Peak(), threading.Event()

    def sample() -> None:
        while not ended.is_set():
            peak.num_bytes = max(peak.num_bytes, anonymous_bytes() - begun)
            time.sleep(period_s)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.num_bytes = max(peak.num_bytes, anonymous_bytes() - begun)
