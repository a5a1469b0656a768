"""checksums.json: what it lists has to be there, byte by byte, before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.golden import TOY_LEROBOT
from support.toy_checkpoint import TINY, write_toy_checkpoint

from thor_policy_ros.backends.fp8_scales import scales_path
from thor_policy_ros.backends.fp8_stored import FILE
from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.model import file_hashes
from thor_policy_ros.model.checkpoint import load_pi05
from thor_policy_ros.model.checksums import (
    ChecksumError,
    checkpoint_files,
    renew_checksums,
    verify_checksums,
    write_checksums,
)
from thor_policy_ros.model.weight_files import CheckpointError, checkpoint_hash
from thor_policy_ros.runtime.unified_policy import UnifiedPolicy

LISTED = (
    "assets/tiny/norm_stats.json",
    "config.json",
    "model.safetensors",
    "tokenizer.model",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with checksums."""
    write_checksums(write_toy_checkpoint(tmp_path))
    return tmp_path


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "checksums.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_that_agrees_loads(folder: Path) -> None:
    assert verify_checksums(folder, required=True) == LISTED
    with UnifiedPolicy(folder, device="cpu") as policy:
        assert policy.config.name == TINY.name


@pytest.mark.parametrize("name", LISTED)
def test_one_flipped_bit_anywhere_is_refused(folder: Path, name: str) -> None:
    wanted = json.loads((folder / "checksums.json").read_text())["files"][name]["sha256"]
    flip_a_byte(folder / name)
    with pytest.raises(ChecksumError) as caught:
        UnifiedPolicy(folder, device="cpu")
    said = str(caught.value)
    assert f"{folder / name}: wanted SHA-256 {wanted}" in said and ", got " in said
    assert f"thor-policy inspect {folder} --write-checksums" in said
    assert all(str(folder / other) + ":" not in said for other in LISTED if other != name)


def test_engines_that_read_the_weights_alone_are_refused_too(folder: Path) -> None:
    flip_a_byte(folder / "model.safetensors")
    with pytest.raises(ChecksumError, match=r"model\.safetensors: wanted SHA-256"):
        load_pi05(folder, TINY.model)


def test_a_conversion_does_not_carry_damage_on(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    flip_a_byte(folder / "model.safetensors")
    made = tmp_path_factory.mktemp("made") / "merged"
    assert main(["convert", str(folder), str(made), "--to", "merged"]) == 2
    assert "model.safetensors: wanted SHA-256" in capsys.readouterr().err
    assert not made.exists()


def test_a_missing_and_a_cut_file_are_named_together(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ChecksumError) as caught:
        verify_checksums(folder)
    assert f"{folder / 'tokenizer.model'}: wanted " in str(caught.value)
    assert "got no such file" in str(caught.value)
    assert f"{folder / 'config.json'}: wanted " in str(caught.value) and "got 2\n" in str(
        caught.value
    )


def test_who_writes_a_file_renews_its_entry_and_no_other(folder: Path) -> None:
    renew_checksums(folder, ())
    flip_a_byte(folder / "model.safetensors")
    (folder / "fp8_scales.made.json").write_text("{}")
    renew_checksums(folder, ("fp8_scales.made.json",))
    with pytest.raises(ChecksumError, match=r"model\.safetensors: wanted SHA-256"):
        verify_checksums(folder)
    renew_checksums(folder, ("model.safetensors",))
    assert verify_checksums(folder) == tuple(sorted((*LISTED, "fp8_scales.made.json")))


def test_where_nothing_is_listed_nothing_is_renewed(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path)
    renew_checksums(tmp_path, LISTED)
    assert not (tmp_path / "checksums.json").exists()


def test_files_that_loading_does_not_read_are_ignored(folder: Path) -> None:
    (folder / "README.md").write_text("what it is")
    (folder / "optimizer.pt").write_bytes(b"\0" * 9)
    assert verify_checksums(folder) == LISTED


@pytest.mark.parametrize(
    "name", ["assets/other/norm_stats.json", "fp8_scales.0123.json", "policy_preprocessor.json"]
)
def test_a_file_that_would_be_read_has_to_be_listed(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(ChecksumError, match=f"{name}: would be read, and is not in checksums"):
        verify_checksums(folder)
    write_checksums(folder)
    assert set(verify_checksums(folder)) == {*LISTED, name}


def test_weights_put_beside_shards_do_not_take_their_place(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path)
    shard = (tmp_path / "model.safetensors").rename(tmp_path / "model-1-of-1.safetensors")
    index = {"weight_map": {"any": shard.name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_checksums(tmp_path)
    assert shard.name in verify_checksums(tmp_path)
    shutil.copy(shard, tmp_path / "model.safetensors")
    with pytest.raises(ChecksumError, match=r"model\.safetensors: would be read"):
        verify_checksums(tmp_path)


def test_what_each_layout_reads_is_found(tmp_path: Path) -> None:
    lerobot = Path(shutil.copytree(TOY_LEROBOT, tmp_path / "lerobot"))
    assert checkpoint_files(lerobot) == ["config.json", "model.safetensors"]
    steps = [{"registry_name": "normalizer_processor", "state_file": "stats_of_mine.safetensors"}]
    (lerobot / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    (lerobot / "stats_of_mine.safetensors").write_bytes(b"")
    assert "stats_of_mine.safetensors" in checkpoint_files(lerobot)
    derived = {scales_path(lerobot, "0" * 64).name, FILE, "weights_hash.json"}
    for name in derived:
        (lerobot / name).write_text("{}")
    assert derived < set(checkpoint_files(lerobot))


def wrong_format(held: dict) -> None:
    held["format"] = 2


def no_files(held: dict) -> None:
    held["files"] = []


def short_hash(held: dict) -> None:
    held["files"]["config.json"]["sha256"] = "ab"


def no_size(held: dict) -> None:
    del held["files"]["config.json"]["bytes"]


def outside(held: dict) -> None:
    held["files"]["../config.json"] = held["files"].pop("config.json")


def absolute(held: dict) -> None:
    held["files"]["/etc/passwd"] = held["files"].pop("config.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_format, "wanted format 1, got 2"),
        (no_files, "wanted files with their hashes"),
        (short_hash, "config.json: wanted bytes and a sha256 of 64 hex digits"),
        (no_size, "config.json: wanted bytes and a sha256 of 64 hex digits"),
        (outside, "wanted names of files in its folder, got '../config.json'"),
        (absolute, "wanted names of files in its folder, got '/etc/passwd'"),
    ],
)
def test_malformed_checksums_are_refused(
    folder: Path, change: Callable[[dict], object], said: str
) -> None:
    edit(folder, change)
    with pytest.raises(ChecksumError) as caught:
        verify_checksums(folder)
    assert said in str(caught.value) and "write it anew" in str(caught.value)


def test_checksums_that_are_no_json_are_refused(folder: Path) -> None:
    (folder / "checksums.json").write_text("{")
    with pytest.raises(ChecksumError, match="not valid JSON"):
        UnifiedPolicy(folder, device="cpu")


def test_they_may_be_required(tmp_path: Path) -> None:
    write_toy_checkpoint(tmp_path)
    assert verify_checksums(tmp_path) == ()
    with pytest.raises(ChecksumError, match=r"wanted checksums\.json in .*--write-checksums"):
        verify_checksums(tmp_path, required=True)


def test_a_settled_file_is_read_once_a_process_and_again_when_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_NS", -(10**18))
    hashed: list[str] = []
    opened = Path.open

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        hashed.extend([path.name] if args == ("rb",) else [])
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counted)
    verify_checksums(folder)
    assert len(hashed) == len(LISTED)
    verify_checksums(folder)
    wanted = checkpoint_hash(folder)
    assert len(hashed) == len(LISTED), "the hash that keys engines and scales is read off"
    assert (
        wanted
        == json.loads((folder / "checksums.json").read_text())["files"]["model.safetensors"][
            "sha256"
        ]
    )
    os.utime(folder / "model.safetensors", ns=(1, 1))
    verify_checksums(folder)
    assert hashed[len(LISTED) :] == ["model.safetensors"]


def test_a_forged_memory_of_the_hash_does_not_pass_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """weights_hash.json would choose the engine of another checkpoint."""
    wanted = checkpoint_hash(folder)
    monkeypatch.setattr(file_hashes, "SETTLED_NS", -(10**18))
    stat = (folder / "model.safetensors").stat()
    stamps = {"model.safetensors": [stat.st_size, stat.st_mtime_ns]}
    (folder / "weights_hash.json").write_text(json.dumps({"sha256": "0" * 64, "files": stamps}))
    with pytest.raises(ChecksumError, match=r"weights_hash\.json: would be read"):
        verify_checksums(folder)
    write_checksums(folder)
    verify_checksums(folder)
    assert checkpoint_hash(folder) == wanted


def test_a_file_just_written_is_hashed_again(folder: Path) -> None:
    """Two writes within one step of the file system's clock leave the same times."""
    weights = folder / "model.safetensors"
    file_hashes.sha256_of(weights)
    assert file_hashes.known_sha256(weights) is None


def test_the_command_writes_them_for_a_checkpoint_that_lacks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_checkpoint(tmp_path)
    assert main(["inspect", str(tmp_path), "--write-checksums"]) == 0
    assert "wrote checksums.json" in capsys.readouterr().out
    assert verify_checksums(tmp_path, required=True) == LISTED
    assert [path.name for path in tmp_path.glob("checksums*")] == ["checksums.json"]
    (tmp_path / "checksums.json").unlink()
    (tmp_path / "tokenizer.model").unlink()
    assert main(["inspect", str(tmp_path), "--write-checksums", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["beside"] == []
    assert not (tmp_path / "checksums.json").exists()


def test_no_weights_no_checksums(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wanted model\.safetensors"):
        write_checksums(tmp_path)
