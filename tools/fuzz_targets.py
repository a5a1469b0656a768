"""What the fuzzer feeds: everything that reads bytes from outside.

A target takes bytes and may raise ValueError, of which every named error of ours is one. Anything
else is a finding.
"""

from __future__ import annotations

import array
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "test" / "data" / "golden"
DEMO = ROOT / "checkpoints" / "demo"


class Target(NamedTuple):
    """seeds: files or bytes that the fuzzer begins with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


@cache
def folder() -> Path:
    """Of this process; memory, where the system has some."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="thor_policy_fuzz_", dir=place))


def _written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.parent


def weights(data: bytes) -> None:
    """A safetensors file: its header, our names for its keys, the sizes that follow."""
    from thor_policy_ros.model.infer_sizes import infer_sizes
    from thor_policy_ros.model.weight_files import read_contents

    contents = read_contents(_written("weights/model.safetensors", data))
    infer_sizes(contents, 10, 200, 3)


def weights_index(data: bytes) -> None:
    from thor_policy_ros.model.weight_files import read_contents

    read_contents(_written("index/model.safetensors.index.json", data))


def config(data: bytes) -> None:
    """config.json, as the folder's own and beside a named policy."""
    from thor_policy_ros.model.named_configs import load_policy_config

    place = _written("config/config.json", data)
    for named in (None, "pi05_libero"):
        try:
            load_policy_config(place, named)
        except ValueError:
            continue


def checksums(data: bytes) -> None:
    from thor_policy_ros.model.checksums import verify_checksums

    _written("checksums/model.safetensors", b"")
    verify_checksums(_written("checksums/checksums.json", data))


def norm_stats(data: bytes) -> None:
    from thor_policy_ros.model.norm_stats import load_norm_stats

    _written("openpi/assets/x/norm_stats.json", data)
    load_norm_stats(folder() / "openpi", "x").affine("actions", "quantile", 2)


def preprocessor(data: bytes) -> None:
    """LeRobot's policy_preprocessor.json."""
    from thor_policy_ros.model.norm_stats import load_norm_stats

    place = _written("lerobot/policy_preprocessor.json", data)
    try:
        load_norm_stats(place, "x")
    except OSError:
        return


def preprocessor_state(data: bytes) -> None:
    from thor_policy_ros.model.norm_stats import load_norm_stats

    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    load_norm_stats(_written(f"state/{name}", data), "x")


def wire(data: bytes) -> None:
    """A frame of openpi's protocol, read as an observation."""
    from thor_policy_ros.model.named_configs import NAMED
    from thor_policy_ros.serving.observation_keys import keys_of
    from thor_policy_ros.serving.requests import RequestForm
    from thor_policy_ros.serving.wire import decode

    policy = NAMED["demo"]
    RequestForm(policy, keys_of(policy), prompt="go").request(decode(data), 0.0)


def image(data: bytes) -> None:
    from thor_policy_ros.runtime.camera_images import image_to_rgb

    encodings = ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "16UC1", "")
    head = struct.Struct("<IIIB")
    height, width, step, kind = head.unpack(data[: head.size].ljust(head.size, b"\0"))
    message = SimpleNamespace(
        height=height, width=width, step=step, encoding=encodings[kind % len(encodings)],
        data=array.array("B", data[head.size :]),
    )  # fmt: skip
    image_to_rgb(message, bool(kind & 64))


def compressed_image(data: bytes) -> None:
    from thor_policy_ros.runtime.camera_images import compressed_to_rgb

    compressed_to_rgb(SimpleNamespace(format="jpeg", data=array.array("B", data)))


def urdf(data: bytes) -> None:
    from thor_policy_ros.runtime.urdf import Urdf

    robot = Urdf(data.decode(errors="replace"))
    robot.limits(list(robot.joints))
    for joint in list(robot.joints.values())[:3]:
        robot.chain(joint.child, list(robot.joints))


def bag(data: bytes) -> None:
    """The bag's metadata; its messages are `bag_messages`."""
    from thor_policy_ros.evaluation.bag import Bag

    with Bag(_written("bag/metadata.yaml", data)) as found:
        found.frames()


def bag_messages(data: bytes) -> None:
    from thor_policy_ros.evaluation.bag import Bag

    _written("bag_messages/bag_0.mcap", data)
    place = _written("bag_messages/metadata.yaml", METADATA.encode())
    with Bag(place) as found:
        list(found.observations(found.frames()))


def state_file(data: bytes) -> None:
    """Parameters kept for the next process, and an engine file's header."""
    from thor_policy_ros.backends.engine_cache import read_key

    read_key(_written("engine/x.engine", data) / "x.engine")


METADATA = """rosbag2_bagfile_information:
  version: 9
  storage_identifier: mcap
  duration: {nanoseconds: 1}
  starting_time: {nanoseconds_since_epoch: 1}
  message_count: 0
  topics_with_message_count: []
  compression_format: ''
  compression_mode: ''
  relative_file_paths: [bag_0.mcap]
  files: [{path: bag_0.mcap, starting_time: {nanoseconds_since_epoch: 1},
    duration: {nanoseconds: 1}, message_count: 0}]
  custom_data: {thor_policy_ros: '{"parameters": {"cameras": []}, "node": "/policy_node"}'}
  ros_distro: jazzy
"""


def _files(*paths: Path) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for path in paths if path.is_file()]


def _headers() -> list[bytes]:
    """Real names and shapes, each with a byte of data: readers look at the header first."""
    found = [b"\x02\0\0\0\0\0\0\0{}"]
    for path in (GOLDEN / "pi05_toy", GOLDEN / "pi05_toy_lerobot"):
        raw = (path / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        found.append(raw[: 8 + length])
    tiny = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    found.append(struct.pack("<Q", len(tiny)) + tiny + b"\0\0\0\0")
    return found


def _frames() -> list[bytes]:
    import numpy as np

    from thor_policy_ros.serving.wire import encode

    picture = np.zeros((2, 2, 3), np.uint8)
    return [
        encode({
            "observation/image": picture, "observation/wrist_image": picture,
            "observation/state": np.zeros(5, np.float32), "prompt": "go",
        }),
        encode({"a": {"b": [1, 2.5, None, True, "x"]}, "n": np.float32(1.0)}),
    ]  # fmt: skip


def _checksums() -> list[bytes]:
    empty = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    held = {"format": 1, "files": {"model.safetensors": empty}}
    return [json.dumps(held).encode(), json.dumps({**held, "files": {"a" * 1000: empty}}).encode()]


def _index() -> list[bytes]:
    return [b'{"weight_map": {"a": "model-00001.safetensors"}}', b"{}", b"[]"]


TARGETS: dict[str, Target] = {
    "weights": Target(weights, _headers),
    "weights_index": Target(weights_index, _index),
    "config": Target(
        config,
        _files(DEMO / "config.json", GOLDEN / "pi05_toy_lerobot" / "config.json"),
    ),
    "checksums": Target(checksums, _checksums),
    "norm_stats": Target(norm_stats, _files(GOLDEN / "preprocess" / "norm_stats.json")),
    "preprocessor": Target(
        preprocessor,
        lambda: [b'{"steps": [{"registry_name": "normalizer_processor", "state_file": "x"}]}'],
    ),
    "preprocessor_state": Target(preprocessor_state, _headers),
    "wire": Target(wire, _frames),
    "image": Target(image, lambda: [struct.pack("<IIIB", 1, 2, 6, 0) + b"abcdef"]),
    "compressed_image": Target(
        compressed_image,
        lambda: [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff\xe0\0\x10JFIF"],
    ),
    "urdf": Target(urdf, _files(ROOT / "config" / "viewers" / "demo_arm.urdf")),
    "bag": Target(bag, lambda: [METADATA.encode()]),
    "bag_messages": Target(bag_messages, lambda: [b"\x89MCAP0\r\n"]),
    "engine_file": Target(state_file, lambda: [b"thor-engine\x00\x01\n\r\n\x02\0\0\0{}"]),
}
