"""What survives a crash, and which crash wants a new process."""

from __future__ import annotations

from pathlib import Path

import pytest

from thor_policy_ros.ros.recovery import keep_state, needs_new_process, read_state


@pytest.mark.parametrize(
    ("error", "sticky"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublas"), True),
        (type("AcceleratorError", (RuntimeError,), {})("device-side assert"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA error: out of memory"), False),
        (ValueError("a defect"), False),
    ],
)
def test_only_a_poisoned_context_wants_a_new_process(error: Exception, sticky: bool) -> None:
    assert needs_new_process(error) is sticky


def test_parameters_outlive_the_process_and_the_newest_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    assert read_state(path) == {}
    assert keep_state(path, {"backend": "pytorch_pipelined", "num_denoise_steps": 4}) == ""
    assert keep_state(path, {"num_denoise_steps": 2}) == ""
    assert read_state(path) == {"backend": "pytorch_pipelined", "num_denoise_steps": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_disk_that_cannot_be_written_is_told_and_changes_nothing(tmp_path: Path) -> None:
    assert "not written" in keep_state(str(tmp_path / "absent" / "state.json"), {"a": 1})
    assert keep_state("", {"a": 1}) == ""


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for text in ("not json", "[1]"):
        path = tmp_path / "state.json"
        path.write_text(text)
        with pytest.raises(ValueError, match="remove it"):
            read_state(str(path))
        assert "remove it" in keep_state(str(path), {"a": 1})
