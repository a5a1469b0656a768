"""A cable between two network namespaces that can lose and delay frames.

Stands in for the kernel's own `tc netem`, which not every kernel has. Started by `TwoHosts`:
makes a TAP interface for each name it is given, carries Ethernet frames between the two, and takes
`LOSS DELAY_S` a line. Ends with its standard input.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST_FRAME = 65536
MOST_WAITING = 20_000  # frames under way; a switch drops what its queue cannot hold, too


class Cable:
    """Frames under way, oldest first. Times are those of the caller's clock, in s.

    loss: share of the frames that are lost. delay_s: how long the others take.
    """

    def __init__(self, seed: int = 0) -> None:
        self.loss = self.delay_s = 0.0
        self._random = random.Random(seed)
        self._waiting: deque[tuple[float, int, bytes]] = deque()

    def put(self, now_s: float, to: int, frame: bytes) -> None:
        """A frame that arrived, for the end `to`."""
        if self._random.random() >= self.loss and len(self._waiting) < MOST_WAITING:
            self._waiting.append((now_s + self.delay_s, to, frame))

    def due(self, now_s: float) -> list[tuple[int, bytes]]:
        """What leaves now. In order: one that was put on a slower cable holds up those behind."""
        found = []
        while self._waiting and self._waiting[0][0] <= now_s:
            _, to, frame = self._waiting.popleft()
            found.append((to, frame))
        return found

    def next_s(self) -> float | None:
        """When the next frame leaves; None if there is none."""
        return self._waiting[0][0] if self._waiting else None


def tap(name: str) -> int:
    """The descriptor of a new TAP interface, which is there as long as the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def carry(ends: tuple[int, int], orders: int) -> None:
    """Until `orders` is at its end."""
    cable, other = Cable(), {ends[0]: ends[1], ends[1]: ends[0]}
    while True:
        next_s = cable.next_s()
        patience_s = None if next_s is None else max(0.0, next_s - time.monotonic())
        ready, _, _ = select.select([*ends, orders], [], [], patience_s)
        for descriptor in ready:
            if descriptor == orders:
                text = os.read(orders, 4096)
                if not text:
                    return
                cable.loss, cable.delay_s = map(float, text.decode().splitlines()[-1].split())
            else:
                _take(cable, descriptor, other[descriptor])
        for to, frame in cable.due(time.monotonic()):
            _write(to, frame)


def _take(cable: Cable, end: int, to: int) -> None:
    """All that waits at one end. OSError: its interface is down, or there is nothing more."""
    try:
        while True:
            cable.put(time.monotonic(), to, os.read(end, LARGEST_FRAME))
    except OSError:
        return


def _write(end: int, frame: bytes) -> None:
    try:
        os.write(end, frame)
    except OSError:
        return  # its interface is down: the frame is lost, as on a cable that is cut


def main(argv: Sequence[str] | None = None) -> int:
    first, second = sys.argv[1:] if argv is None else argv
    ends = (tap(first), tap(second))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(ends, sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
