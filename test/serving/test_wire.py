"""Frames of the protocol: as openpi's client packs them, and nothing else gets through."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from thor_policy_ros.serving.wire import WireError, decode, encode

DTYPES = [np.bool_, np.uint8, np.int8, np.int32, np.int64, np.uint16, np.float16, np.float32, "f8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)
VALUES = st.recursive(
    ARRAYS | st.text() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return (ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=False)) or (
            ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
        )
    if isinstance(theirs, dict):
        return set(ours) == set(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs or (ours != ours and theirs != theirs))


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_packed_here_openpis_client_unpacks_and_the_other_way_round(
    message: dict[str, Any],
) -> None:
    assert encode(message) == msgpack_numpy.packb(message)
    assert same(msgpack_numpy.unpackb(encode(message)), message)
    assert same(decode(msgpack_numpy.packb(message)), message)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(-3), np.bool_(True), np.uint8(255)])
def test_numpy_scalars_keep_their_type(value: Any) -> None:
    (got,) = decode(msgpack_numpy.packb({"x": value})).values()
    assert got == value and got.dtype == value.dtype


def test_arrays_are_views_of_the_frame() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    got = decode(encode({"image": image}))["image"]
    assert not got.flags.writeable and not got.flags.owndata


@pytest.mark.parametrize(
    "value",
    [np.array([object()]), np.array([1j]), np.array(["text"]), np.zeros(1, "V4"), {1, 2}, object()],
    ids=["objects", "complex", "text", "void", "set", "object"],
)
def test_what_has_no_form_is_not_packed(value: Any) -> None:
    with pytest.raises(WireError, match="cannot be packed"):
        encode({"x": value})


def array_map(**change: Any) -> dict[bytes, Any]:
    whole = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    return {**whole, **{key.encode(): value for key, value in change.items()}}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (array_map(dtype="|O"), r"boolean, integer or float dtype, got '\|O'"),
        (array_map(dtype="<c8"), "boolean, integer or float dtype"),
        (array_map(dtype="<f4,<f4"), "boolean, integer or float dtype"),
        (array_map(dtype=3), "boolean, integer or float dtype, got '3'"),
        (array_map(dtype=None), "boolean, integer or float dtype"),
        (array_map(shape=[3]), r"<?f?.*\[3\] does not have 8 bytes"),
        (array_map(shape=[-2]), r"got \[-2\]"),
        (array_map(shape=[True, 2]), r"got \[True, 2\]"),
        (array_map(shape="22"), "got '22'"),
        (array_map(shape=None), "got None"),
        (array_map(shape=[2**62, 2**62, 2**62]), "does not have 8 bytes"),
        (array_map(shape=[1] * 9), "at most 8 sizes"),
        (array_map(data="text"), "data as bytes, got str"),
        (array_map(data=None), "data as bytes, got NoneType"),
        ({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}, "wants a number, got str"),
        ({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}, "is not msgpack"),
        ({b"__npgeneric__": True, b"data": 2**63, b"dtype": "<i8"}, "is not msgpack"),
        ({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}, "boolean, integer or float dtype"),
    ],
)
def test_wrong_arrays_are_refused_by_what_is_wrong(frame: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(msgpack.packb({"x": frame}))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "0 bytes is not msgpack"),
        (b"\xc1", "is not msgpack"),
        (b"GET / HTTP/1.1\r\n\r\n", "is not msgpack"),
        (msgpack.packb({"a": 1}) + b"\0", "is not msgpack"),
        (msgpack.packb({"a": b"1234"})[:-1], "is not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "is not msgpack"),  # a map of 2^32 entries
        (b"\xc6\xff\xff\xff\xff", "is not msgpack"),  # 4 GB of bytes
        (b"\x91" * 100_000 + b"\x90", "is not msgpack"),  # lists in lists
        (b"\x81\xa1\xff\x01", "is not msgpack"),  # text that is not UTF-8
        (msgpack.packb([1, 2]), "map of names to values, got list"),
        (msgpack.packb(None), "map of names to values, got NoneType"),
        (msgpack.packb({b"a": 1}), r"names as keys, got \[b'a'\]"),
        (msgpack.packb({1: 1}), "is not msgpack"),
        (msgpack.packb(array_map()), "map of names to values, got ndarray"),
    ],
)
def test_frames_that_are_no_message_are_refused(frame: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(frame)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(frame: bytes) -> None:
    with suppress(WireError):
        assert isinstance(decode(frame), dict)


@given(st.data())
def test_a_damaged_message_is_a_message_or_refused(data: st.DataObject) -> None:
    frame = bytearray(
        encode({"image": np.zeros((4, 4, 3), np.uint8), "state": np.zeros(8), "p": ""})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        assert isinstance(decode(bytes(frame)), dict)
