"""Messages on a slow wire: late, complete and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thor_policy_ros.ros.delay_line import DelayLine


def test_without_delay_a_message_leaves_at_once() -> None:
    sent: list[str] = []
    DelayLine().send(sent.append, "a", 1.0, 0.0)
    assert sent == ["a"]


def test_a_message_leaves_when_it_is_due_and_not_before_those_ahead_of_it() -> None:
    wire, sent = DelayLine(), []
    wire.send(sent.append, "slow", 1.0, 0.3)
    wire.send(sent.append, "quick", 1.1, 0.0)
    wire.flush(1.29)
    assert sent == []
    wire.flush(1.3)
    assert sent == ["slow", "quick"]


@given(st.lists(st.tuples(st.floats(0.0, 0.2), st.floats(0.0, 1.0)), max_size=30))
def test_all_arrive_in_order_none_early(messages: list[tuple[float, float]]) -> None:
    wire, arrived, now = DelayLine(), [], [0.0]

    def note(message: tuple[int, float]) -> None:
        arrived.append((message, now[0]))

    for number, (gap_s, delay_s) in enumerate(messages):
        now[0] += gap_s
        wire.flush(now[0])
        wire.send(note, (number, now[0] + delay_s), now[0], delay_s)
    now[0] += 2.0
    wire.flush(now[0])
    assert [message[0] for message, _ in arrived] == list(range(len(messages)))
    assert all(at_s >= due_s - 1e-9 for (_, due_s), at_s in arrived)
