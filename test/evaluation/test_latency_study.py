"""The latency study: resumable, paired, and its verdicts follow from its cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.latency_study import cells
from thor_policy_ros.evaluation.latency_study_report import plot, tables, verdicts

CHECKPOINT = str(Path(__file__).resolve().parents[2] / "checkpoints" / "demo")


def study(out: Path, *more: str) -> int:
    return main(
        ["latency-study", "--out", str(out), "--checkpoint", CHECKPOINT, "--episodes", "2",
         "--latencies", "200", "--speeds", "0.12", "--rtc-max-weight", "5", *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ways of blending on the demo's checkpoint."""
    out = tmp_path_factory.mktemp("study") / "study.json"
    assert study(out, "--blendings", "crossfade,rtc") == 0
    return out


def test_rtc_joins_its_chunks_with_smaller_jumps_than_crossfade(found: Path) -> None:
    by = {cell["blending"]: cell for cell in json.loads(found.read_text())["cells"].values()}
    assert by["rtc"]["jump_worst"] < 0.6 * by["crossfade"]["jump_worst"]
    assert by["rtc"]["jump_mean"] < 0.6 * by["crossfade"]["jump_mean"]


def test_the_report_says_how_it_was_made(found: Path) -> None:
    report = json.loads(found.read_text())
    assert "--latencies 200" in report["command"] or report["command"]
    assert report["settings"]["kind"] == "compute" and report["settings"]["episodes"] == 2
    for cell in report["cells"].values():
        assert len(cell["won"]) == cell["episodes"] == 2
        assert cell["successes"] == cell["won"].count("1")
    verdict = report["verdicts"]["worst discontinuity of rtc below that of crossfade"]
    assert verdict["met"] is True and verdict["cells"] == 1


def test_a_stopped_study_goes_on_and_keeps_its_cells(found: Path, tmp_path: Path) -> None:
    report = json.loads(found.read_text())
    kept = dict(report["cells"]["crossfade 200 ms 0.12 m/s"], marked="kept")
    report["cells"] = {"crossfade 200 ms 0.12 m/s": kept}
    out = tmp_path / "stopped.json"
    out.write_text(json.dumps(report))
    assert study(out, "--blendings", "crossfade,rtc") == 0
    again = json.loads(out.read_text())["cells"]
    assert again["crossfade 200 ms 0.12 m/s"]["marked"] == "kept"
    first, second = (json.loads(p.read_text())["cells"] for p in (found, out))
    one, other = (c["rtc 200 ms 0.12 m/s"] for c in (first, second))
    assert {k: v for k, v in one.items() if k != "wall_s"} == {
        k: v for k, v in other.items() if k != "wall_s"
    }, "an episode follows from its seed"


def test_a_file_of_other_settings_is_not_continued(
    found: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(found, "--kind", "transport") == 2
    assert "other settings" in capsys.readouterr().err


def test_an_unknown_blending_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study(tmp_path / "x.json", "--blendings", "smooth") == 2
    assert "latest, crossfade, temporal_ensemble, rtc" in capsys.readouterr().err


def cell(blending: str, latency: float, speed: float, wins: int, jump: float = 0.1) -> dict:
    return {
        "blending": blending, "latency_ms": latency, "speed_m_s": speed, "successes": wins,
        "episodes": 10, "wilson_95": [0.0, 1.0], "jump_worst": jump, "jump_mean": jump / 2,
        "jerk_rms": 400.0,
    }  # fmt: skip


def test_verdicts_compare_the_best_blending_with_itself_at_no_latency() -> None:
    found = verdicts(
        [
            cell("crossfade", 0, 0.0, 10), cell("rtc", 0, 0.0, 9),
            cell("crossfade", 200, 0.0, 8), cell("rtc", 200, 0.0, 9, 0.05),
            cell("crossfade", 0, 0.08, 10), cell("crossfade", 200, 0.08, 6),
        ]
    )  # fmt: skip
    assert found["kept at 200 ms, 0 m/s"] == {
        "wanted": 0.9, "came": 0.9, "blending": "rtc", "met": True,
    }  # fmt: skip
    assert found["kept at 200 ms, 0.08 m/s"]["met"] is False
    jumps = found["worst discontinuity of rtc below that of crossfade"]
    assert jumps["met"] is False and (jumps["cells"], jumps["cells_where_below"]) == (2, 1)


def test_an_unfinished_study_judges_nothing() -> None:
    assert verdicts([cell("latest", 0, 0.0, 10)]) == {}


def test_every_combination_once() -> None:
    keys = [c.key for c in cells((0, 200), (0.0, 0.08), ("latest", "rtc"))]
    assert len(set(keys)) == len(keys) == 8


def test_picture_and_tables_of_any_cells(tmp_path: Path) -> None:
    some = [cell("rtc", ms, v, 9) for ms in (0, 200) for v in (0.0, 0.08)]
    plot(some, tmp_path / "study.png", "ms")
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    assert [len(table.rows) for table in tables(some)] == [2, 2]
