"""What `make demo` counts, and when it is content."""

import json

import pytest

from thor_policy_ros.ros.demo_progress import STAGES, DemoProgress, Episode
from thor_policy_ros.ros.demo_report import write_latency_plot, write_summary


def episode(index: int, success: bool = True) -> Episode:
    return Episode(index, "pick up the red cube", "success" if success else "timeout", success, 2.0)


def frame(total_ms: float) -> dict[str, float]:
    return dict.fromkeys(STAGES, total_ms)


def test_an_episode_that_never_ended_counts_against_the_rate() -> None:
    progress = DemoProgress(wanted_episodes=4)
    for index in range(3):
        progress.add_episode(episode(index))
    assert progress.solved == 3
    assert progress.success_rate == pytest.approx(0.75)
    assert not progress.finished


def test_a_repeated_message_counts_once_and_extra_episodes_not_at_all() -> None:
    progress = DemoProgress(wanted_episodes=2)
    for index in (0, 0, 1, 2):
        progress.add_episode(episode(index, success=index != 1))
    assert [e.index for e in progress.episodes] == [0, 1]
    assert progress.finished
    assert progress.success_rate == pytest.approx(0.5)


def test_chunk_rate_forgets_what_is_older_than_its_window() -> None:
    progress = DemoProgress(wanted_episodes=1)
    for tick in range(51):
        progress.add_chunk(received_s=tick * 0.1, observed_at_age_ms=20.0)
    assert progress.chunk_rate_hz(5.0) == pytest.approx(10.0)
    assert progress.chunk_rate_hz(100.0) == 0.0


def test_missed_ticks_are_the_nodes_own_running_count() -> None:
    progress = DemoProgress(wanted_episodes=1)
    for missed_so_far in (0, 2, 3):
        progress.add_frame(
            frame(10.0), deadline_missed=missed_so_far > 0, missed_ticks=missed_so_far
        )
    assert progress.missed_ticks == 3
    assert progress.deadline_misses == 2


def test_the_report_holds_figures_and_settings(tmp_path) -> None:
    progress = DemoProgress(wanted_episodes=1)
    for total_ms in (10.0, 20.0, 30.0):
        progress.add_frame(frame(total_ms), deadline_missed=False, missed_ticks=0)
        progress.add_chunk(total_ms, total_ms + 5.0)
    progress.add_episode(episode(0))
    write_summary(progress, {"backend": "pytorch"}, tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["settings"] == {"backend": "pytorch"}
    assert figures["solved"] == 1
    assert figures["latency_ms"]["total"]["p50"] == pytest.approx(20.0)
    assert figures["latency_ms"]["observation_to_chunk"]["p50"] == pytest.approx(25.0)
    write_latency_plot(progress, "title", tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_frames_has_no_plot(tmp_path) -> None:
    with pytest.raises(ValueError, match="no frame was received"):
        write_latency_plot(DemoProgress(wanted_episodes=1), "title", tmp_path / "x.png")
