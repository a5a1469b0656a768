"""convert, calibrate and report where the disk is full: one message, and nothing half written."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.recorded_bag import FrameRow, write_bag
from support.small_disk import fill, small_disk
from support.toy_checkpoint import toy_observation, write_toy_checkpoint

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.recorded_observations import write_observations
from thor_policy_ros.model.checksums import verify_checksums, write_checksums
from thor_policy_ros.model.whole_file import require_room, whole_folder, write_whole

PAGE = 4096


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_toy_checkpoint(tmp_path / "source")


def pages(num_bytes: int) -> int:
    return -(-num_bytes // PAGE) * PAGE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def limited(command: list[str], num_bytes: int) -> subprocess.CompletedProcess[str]:
    """No file may grow beyond so many bytes, which wants no right to mount."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    argv = [sys.executable, "-m", "thor_policy_ros.evaluation", *command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, preexec_fn=limit)


def test_convert_asks_for_room_before_it_writes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 16 * PAGE) as disk:
        status = main(["convert", str(source), str(disk / "made"), "--to", "openpi"])
        assert status == 2 and names(disk) == []
    said = capsys.readouterr().err
    assert "GB are to be written" in said and "are free; make room" in said


def test_convert_leaves_nothing_where_the_last_files_do_not_fit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for the weights, and three pages for directories and what comes beside them."""
    weights = (source / "model.safetensors").stat().st_size
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", pages(weights) + 3 * PAGE) as disk:
        status = main(["convert", str(source), str(disk / "deep" / "made"), "--to", "openpi"])
        assert status == 2 and names(disk) == []
    said = capsys.readouterr().err
    assert "No space left on device" in said and str(disk / "deep" / "made") in said


def test_convert_leaves_nothing_where_the_weights_do_not_fit(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    done = limited(["convert", str(source), str(made), "--to", "openpi"], 100_000)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"File too large: '{made / 'model.safetensors'}'" in done.stderr
    assert not made.exists()
    made.mkdir()
    limited(["convert", str(source), str(made), "--to", "openpi"], 100_000)
    assert made.is_dir() and names(made) == [], "a folder that was there stays"


def test_calibrate_on_a_full_disk_leaves_the_checkpoint_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_observations(tmp_path / "seen.safetensors", [toy_observation(seed=n) for n in range(2)])
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        folder = write_toy_checkpoint(disk / "tiny")
        write_checksums(folder)
        before = names(folder)
        fill(disk)
        command = ["calibrate", "--checkpoint", str(folder), "--device", "cpu"]
        command += ["--recorded", str(tmp_path / "seen.safetensors")]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "No space left on device" in said and "fp8_scales." in said
        assert names(folder) == before and verify_checksums(folder)
        (disk / "ballast").unlink()
        assert main(command) == 0
        assert len(names(folder)) == len(before) + 1
        (scales,) = folder.glob("fp8_scales.*.json")
        assert scales.name in verify_checksums(folder), "and the next load takes it"


def test_report_on_a_full_disk_keeps_the_older_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", [FrameRow(20.0)] * 5)
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", 64 * PAGE) as disk:
        page = disk / "page.html"
        page.write_text("the older page")
        fill(disk)
        assert main(["report", str(bag), "--out", str(page)]) == 2
        assert page.read_text() == "the older page"
        assert names(disk) == ["ballast", "page.html"]
    said = capsys.readouterr().err
    assert "No space left on device" in said and "page.html" in said


def test_what_is_no_file_is_written_to_as_it_is(tmp_path: Path) -> None:
    assert write_whole(Path("/dev/null"), "text") == Path("/dev/null")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"


def test_room_is_asked_of_the_disk_that_the_folder_would_be_on(tmp_path: Path) -> None:
    require_room(tmp_path / "new" / "deeper", 1)
    with pytest.raises(OSError, match="GB are free; make room"):
        require_room(tmp_path / "new" / "deeper", 10**18)


def test_a_folder_that_holds_something_is_not_emptied(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(ValueError, match="not empty"), whole_folder(tmp_path):
        raise OSError("never reached")
    assert kept.read_text() == "mine"
