"""The simulator's side without a simulator: messages, initial states, resets in any order."""

from __future__ import annotations

import socket
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest

from thor_policy_ros.sim.libero import libero_tasks, wire
from thor_policy_ros.sim.libero.init_states import read_init_states
from thor_policy_ros.sim.libero.process import open_tasks
from thor_policy_ros.sim.libero.served_tasks import TasksRefusedError
from thor_policy_ros.sim.libero.trial_resets import OneEnvironment, TrialResets
from thor_policy_ros.sim.libero.wire import Moved, Seen, SimulatorWireError, Task

# pickle protocol 2 of an f8[2,2] array, as torch.save writes it, written out by hand.
NUMBERS = np.array([[0.5, -1.0], [2.0, 1e300]])


def pickled(
    array: np.ndarray, module: str = "numpy.core.multiarray", order: bytes = b"\x89"
) -> bytes:
    def text(words: str) -> bytes:
        data = words.encode()
        return b"X" + len(data).to_bytes(4, "little") + data

    rows, columns = array.shape
    latin = text("latin1")
    empty = b"c_codecs\nencode\n" + text("b") + latin + b"\x86R"
    made = f"c{module}\n_reconstruct\ncnumpy\nndarray\n".encode() + b"K\x00\x85" + empty + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(array.dtype.str[1:]) + b"\x89\x88\x87R(K\x03"
    dtype += text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"c_codecs\nencode\n" + text(array.tobytes().decode("latin1")) + latin + b"\x86R"
    shape = b"(K\x01K" + bytes([rows]) + b"K" + bytes([columns]) + b"\x86"
    return b"\x80\x02" + made + shape + dtype + order + data + b"tb."


def saved(path: Path, pickle: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
    return path


def test_initial_states_are_read_without_running_them(tmp_path: Path) -> None:
    found = read_init_states(saved(tmp_path / "a.pruned_init", pickled(NUMBERS)))
    assert found.dtype == np.float64 and np.array_equal(found, NUMBERS)


@pytest.mark.parametrize(
    ("pickle", "said"),
    [
        (pickled(NUMBERS, module="os.path"), "is no plain array: it names .'os.path _reconstruct'"),
        (b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "it names .'posix system'"),
        (pickled(np.ones((2, 2), np.float32)), "got another dtype"),
        (pickled(NUMBERS, order=b"\x88"), "got Fortran's order"),
        (b"N.", "wanted one array of float64"),
        (b"\xff\xff", "wanted initial states as torch.save writes them"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, pickle: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_init_states(saved(tmp_path / "a.pruned_init", pickle))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"wanted initial states as torch\.save writes them"):
        read_init_states(tmp_path / "a")


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1), (2, 2, 0, 3, 1)])
def test_a_trial_begins_the_same_whatever_was_played_before(order: tuple[int, ...]) -> None:
    drawn: list[float] = []
    np.random.seed(7)
    in_order = [np.random.normal() for _ in range(4)]
    resets = TrialResets(7)
    for trial in order:
        resets.to(trial, lambda: drawn.append(np.random.normal()))
        assert drawn[-1] == in_order[trial]
        np.random.normal()  # somebody else draws meanwhile
    assert len(drawn) <= len(order) + max(order)


class Scene:
    """Draws at a reset, as robosuite's environments do."""

    def __init__(self, task: int, said: list[str]) -> None:
        self.task, self._said, self.drawn = task, said, 0.0
        np.random.seed(99)  # making one draws too
        said.append(f"made {task}")

    def reset(self) -> None:
        self.drawn = np.random.normal()

    def close(self) -> None:
        self._said.append(f"closed {self.task}")


def test_one_environment_is_open_and_trials_begin_alike_in_every_one() -> None:
    said: list[str] = []
    one = OneEnvironment(lambda task: Scene(task, said))
    begun = {(task, trial): one.at(task, trial, 7).drawn for task in (0, 1) for trial in (0, 2)}
    assert said == ["made 0", "closed 0", "made 1"]
    again = {(task, trial): one.at(task, trial, 7).drawn for task, trial in reversed(begun)}
    assert again == begun and len(set(begun.values())) == 2
    assert one.at(0, 0, 8).drawn != begun[0, 0] and said[-2:] == ["closed 0", "made 0"]


def test_an_environment_that_cannot_be_made_leaves_none_open() -> None:
    said: list[str] = []

    def make(task: int) -> Scene:
        if task == 1:
            raise TasksRefusedError("a mesh is missing")
        return Scene(task, said)

    one = OneEnvironment(make)
    one.at(0, 0, 7)
    for _ in range(2):
        with pytest.raises(TasksRefusedError, match="a mesh is missing"):
            one.at(1, 0, 7)
    assert one.at(0, 0, 7).task == 0 and said == ["made 0", "closed 0", "made 0"]


def seen(shade: int = 0) -> Seen:
    image = np.full(wire.IMAGE_SHAPE, shade, np.uint8)
    return Seen(image, image, np.arange(3.0), np.array([0.0, 0.0, 0.0, 1.0]), np.zeros(2))


def over_the_wire(message: dict[str, object]) -> dict[str, object]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        import threading

        sender = threading.Thread(target=wire.send, args=(theirs, message))
        sender.start()
        found = wire.receive(ours)
        sender.join()
    return found


def test_what_was_seen_arrives_as_it_was() -> None:
    answer = {"seen": wire.seen_to_wire(seen(3)), "steps": 2, "success": True,
              "frames": [seen(1).base.tobytes()]}  # fmt: skip
    moved = wire.moved_from_wire(over_the_wire(answer))
    assert isinstance(moved, Moved) and (moved.steps, moved.success) == (2, True)
    assert moved.seen.base[0, 0, 0] == 3 and moved.frames[0].max() == 1
    assert np.array_equal(moved.seen.eef_position, np.arange(3.0))
    tasks = (Task("a", "do a", 50), Task("b", "do b"))
    assert wire.tasks_from_wire(over_the_wire({"t": wire.tasks_to_wire(tasks)})["t"]) == tasks


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"steps": True, "success": True, "frames": []},
        {"steps": 1, "success": True, "frames": [], "seen": {}},
        {"steps": 1, "success": True, "frames": [b"short"], "seen": wire.seen_to_wire(seen())},
        {"steps": 1, "success": 1, "frames": [], "seen": wire.seen_to_wire(seen())},
        {"steps": 1, "success": True, "frames": [],
         "seen": {**wire.seen_to_wire(seen()), "gripper": [0.0, None]}},
    ],
)  # fmt: skip
def test_answers_of_another_form_are_refused(answer: dict[str, object]) -> None:
    with pytest.raises(SimulatorWireError, match="wanted"):
        wire.moved_from_wire(answer)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"\xff\xff\xff\xff", "wanted at most"),
        (b"\x00\x00\x00\x02\xc1\xc1", "not msgpack"),
        (b"\x00\x00\x00\x01\x07", "wanted a map, got int"),
    ],
)
def test_frames_of_another_form_are_refused(frame: bytes, said: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frame)
        with pytest.raises(SimulatorWireError, match=said):
            wire.receive(ours)


def test_the_end_of_a_connection_is_no_message() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(msgpack.packb(1))
        with pytest.raises(EOFError):
            wire.receive(ours)


def test_instructions_are_in_the_names_of_tasks() -> None:
    assert libero_tasks.language_of("open_the_middle_drawer") == "open the middle drawer"
    name = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet"
    assert libero_tasks.language_of(name) == "close the top drawer of the cabinet"
    assert libero_tasks.language_of("STUDY_SCENE1_pick_up_the_book") == "pick up the book"


def test_missing_meshes_are_told_with_where_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "assets" / "textures").mkdir(parents=True)
    with pytest.raises(TasksRefusedError) as told:
        libero_tasks.check_assets(tmp_path)
    said = str(told.value)
    assert f"no scenes, stable_hope_objects in {tmp_path / 'assets'}" in said
    assert "git clone https://github.com/Lifelong-Robot-Learning/LIBERO" in said


def test_a_suite_that_is_unknown_or_not_installed_is_refused() -> None:
    with pytest.raises(TasksRefusedError, match="unknown suite 'x'; choose one of: libero_spatial"):
        open_tasks("x")
    with pytest.raises(TasksRefusedError, match="--make-environment"):
        open_tasks("libero_spatial")  # neither is in this environment
