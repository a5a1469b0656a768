"""The keystore of `thor-policy security`: signed, private, and enforced by a real DDS."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from thor_policy_ros.evaluation.cli import main
from thor_policy_ros.evaluation.enclaves import (
    EXECUTOR,
    OPERATOR,
    POLICY,
    VIEWER,
    dds_topics,
    enclaves,
)

DOMAINS = (71, 72, 73, 74, 75)
CHUNKS = f"rt/{POLICY}/action_chunk"
PEER = Path(__file__).parents[1] / "support" / "dds_peer.cpp"
HAS_FAST_DDS = Path("/usr/include/fastdds/rtps/transport").is_dir() and bool(shutil.which("g++"))
WANTS = (
    "wants a Fast DDS with security, which no wheel has (ROS's, pi-fastdds', cyclonedds' are built "
    "without): as root, apt-get install libfastrtps-dev g++"
)


def make(folder: Path, *options: str) -> Path:
    domains = [word for domain in DOMAINS for word in ("--domain", str(domain))]
    assert main(["security", "--out", str(folder), *domains, *options]) == 0
    return folder


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("security") / "keystore")


def verified(signed: Path, keystore: Path) -> str | None:
    """The text in clear, where openssl finds the signature good."""
    authority = keystore / "public" / "permissions_ca.cert.pem"
    command = ["openssl", "smime", "-verify", "-text", "-in", str(signed)]
    command += ["-CAfile", str(authority)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.replace("\r\n", "\n") if done.returncode == 0 else None


def test_openssl_finds_every_signature_good_and_the_text_that_was_signed(keystore: Path) -> None:
    signed = sorted(keystore.rglob("*.p7s"))
    assert len(signed) == 1 + 2 * len(enclaves())
    for path in signed:
        beside = path.with_suffix(".xml")
        plain = beside if beside.is_file() else keystore / "enclaves" / "governance.xml"
        assert verified(path, keystore) == plain.read_text()


def test_permissions_that_were_changed_are_no_longer_signed(keystore: Path, tmp_path: Path) -> None:
    signed = (keystore / "enclaves" / OPERATOR / "permissions.p7s").read_text()
    forged = tmp_path / "permissions.p7s"
    forged.write_text(signed.replace("<topic>rt/instruction</topic>", f"<topic>{CHUNKS}</topic>"))
    assert forged.read_text() != signed and verified(forged, keystore) is None


def test_certificates_are_of_the_authority_and_name_the_enclave(keystore: Path) -> None:
    for enclave in enclaves():
        path = keystore / "enclaves" / enclave.node / "cert.pem"
        command = ["openssl", "verify", "-CAfile", str(keystore / "public" / "ca.cert.pem")]
        subprocess.run([*command, str(path)], check=True, capture_output=True)
        said = subprocess.run(
            ["openssl", "x509", "-in", str(path), "-noout", "-subject"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert said.strip().replace(" ", "") == f"subject=CN=/{enclave.node}"


def test_keys_are_readable_by_their_owner_alone(keystore: Path) -> None:
    keys = sorted(keystore.rglob("*key.pem"))
    assert len(keys) == 1 + len(enclaves())
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def granted(keystore: Path, node: str, right: str) -> set[str]:
    root = ElementTree.parse(keystore / "enclaves" / node / "permissions.xml")
    assert root.findtext(".//default") == "DENY"
    assert [e.text for e in root.findall(".//domains/id")] == [str(d) for d in DOMAINS]
    return {str(e.text) for e in root.findall(f".//{right}/topics/topic")}


def test_chunks_and_commands_have_one_publisher_each_and_no_wildcards(keystore: Path) -> None:
    nodes = [enclave.node for enclave in enclaves()]
    may = {node: granted(keystore, node, "publish") for node in nodes}
    assert [node for node in nodes if CHUNKS in may[node]] == [POLICY]
    assert [node for node in nodes if f"rt/{EXECUTOR}/commands" in may[node]] == [EXECUTOR]
    assert [node for node in nodes if "rt/joint_states" in may[node]] == ["sim_robot_node"]
    for node in nodes:
        names = may[node] | granted(keystore, node, "subscribe")
        assert not any(sign in name for name in names for sign in "*?[")


def test_an_operator_may_stop_the_robot_and_give_words(keystore: Path) -> None:
    may = granted(keystore, OPERATOR, "publish")
    assert {f"rq/{EXECUTOR}/estopRequest", "rt/instruction"} <= may


def test_the_viewer_hears_the_robots_description_and_says_none(keystore: Path) -> None:
    name = "rt/robot_description"
    nodes = [enclave.node for enclave in enclaves()]
    assert [node for node in nodes if name in granted(keystore, node, "subscribe")] == [VIEWER]
    assert not any(name in granted(keystore, node, "publish") for node in nodes)


def test_a_namespace_and_cameras_of_ones_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "k", "--namespace", "cell/left", "--camera", "/zed/image",
                  "--commands-topic", "/arm/commands")  # fmt: skip
    place = folder / "enclaves" / "cell" / "left" / POLICY
    said = verified(place / "permissions.p7s", folder)
    assert said is not None
    for text in ("CN=/cell/left/policy_node", "rt/cell/left/policy_node/action_chunk", "rt/zed/"):
        assert text in said
    executor = place.parent / EXECUTOR / "permissions.xml"
    assert "<topic>rt/arm/commands</topic>" in executor.read_text()
    assert "camera_base" not in said and "rt/diagnostics" in said


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--namespace", "a b"), "--namespace is 'a b'"),
        (("--domain", "233"), "--domain is 233; wanted 0 to 232"),
    ],
)
def test_what_ros_would_not_take_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], reason: str
) -> None:
    assert main(["security", "--out", str(tmp_path / "k"), *options]) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "k").exists()


def test_a_keystore_is_never_overwritten(
    keystore: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in keystore.rglob("*") if path.is_file()}
    assert main(["security", "--out", str(keystore)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in keystore.rglob("*") if path.is_file()}


def test_services_are_both_requests_and_replies() -> None:
    topics = dds_topics(enclaves()[0], "/")
    assert f"rq/{POLICY}/resetRequest" in topics.subscribe
    assert f"rr/{POLICY}/resetReply" in topics.publish
    assert f"rq/{POLICY}/resetRequest" not in topics.publish


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("peer") / "dds_peer"
    command = ["g++", "-std=c++17", "-o", str(program), str(PEER), "-lfastrtps", "-lfastcdr"]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return program


def started(peer: Path, folder: Path | str, role: str, domain: int) -> subprocess.Popen[str]:
    command = [str(peer), str(folder), role, CHUNKS, str(domain), "12" if role == "read" else "10"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_FAST_DDS, reason=WANTS)
def test_fast_dds_lets_the_policy_alone_reach_the_executor(
    keystore: Path, peer: Path, tmp_path: Path
) -> None:
    """With the keys: a chunk arrives. Refused: no keys; keys of a node without the topic, which
    fails by itself and, forged, at the other side; keys of another authority."""
    of = keystore / "enclaves"
    other = make(tmp_path / "other") / "enclaves" / POLICY
    forged = Path(shutil.copytree(of / OPERATOR, tmp_path / "forged"))
    signed = (forged / "permissions.p7s").read_text()
    wanted = f"<topic>{CHUNKS}</topic>"
    (forged / "permissions.p7s").write_text(signed.replace("<topic>rt/instruction</topic>", wanted))
    writers: Sequence[Path | str] = (of / POLICY, "-", of / OPERATOR, forged, other)
    readers = [started(peer, of / EXECUTOR, "read", domain) for domain in DOMAINS]
    running = [started(peer, w, "write", d) for w, d in zip(writers, DOMAINS, strict=True)]
    wrote = [process.communicate(timeout=60)[0] for process in running]
    heard = [process.communicate(timeout=60)[0] for process in readers]
    assert "matched=1" in heard[0] and "received=0" not in heard[0]
    for said in heard[1:]:
        assert said.splitlines()[-1] == "matched=0 received=0"
    assert "matched=0" in wrote[1], "without keys it runs, and nobody listens"
    assert "not found in allow rule" in wrote[2] and "refused: writer" in wrote[2]
    assert "refused: participant" in wrote[3], "the signature is not of these permissions"
    assert "matched=0" in wrote[4], "of another authority"
