"""Write keys and permissions of the nodes for ROS 2 security (SROS 2): only the listed topics.

The keystore works as it is (ROS_SECURITY_KEYSTORE); policy.xml in it is the same table for
`ros2 security create_permission`, where another authority signs. See docs/security.md.
"""

from __future__ import annotations

import argparse
import datetime
from importlib.util import find_spec
from pathlib import Path

from thor_policy_ros.evaluation.enclaves import (
    CAMERAS,
    EXECUTOR,
    dds_topics,
    enclave_path,
    enclaves,
    policy_xml,
)

LARGEST_DOMAIN = 232
TOPICS = {name: f"{EXECUTOR}/{name.replace('-', '_')}" for name in ("commands", "joint-trajectory")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `thor-policy security`."""
    parser.add_argument("--out", type=Path, required=True, help="new folder of the keystore")
    parser.add_argument("--namespace", default="/", help="of the nodes; default: /")
    parser.add_argument(
        "--camera", action="append", metavar="TOPIC", help=f"default: {' '.join(CAMERAS)}"
    )
    for name, topic in TOPICS.items():
        parser.add_argument(f"--{name}-topic", default=topic, help="as of policy.launch.py")
    parser.add_argument(
        "--domain", action="append", type=int, help="ROS_DOMAIN_ID, may be repeated; default: 0"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the keystore and says how to use it."""
    if find_spec("cryptography") is None:
        raise ValueError("package cryptography is not installed; pip install cryptography")
    from thor_policy_ros.evaluation.dds_security import (
        new_authority,
        write_enclave,
        write_keystore,
    )

    namespace = checked_namespace(arguments.namespace)
    domains = checked_domains(arguments.domain or [0])
    cameras, folder = tuple(arguments.camera or CAMERAS), arguments.out
    chosen = enclaves(cameras, arguments.commands_topic, arguments.joint_trajectory_topic)
    authority = new_authority(datetime.datetime.now(datetime.timezone.utc))
    write_keystore(folder, authority, domains)
    for enclave in chosen:
        path = enclave_path(enclave, namespace)
        write_enclave(folder, authority, path, dds_topics(enclave, namespace), domains)
        print(f"{path}: {folder / 'enclaves' / path.strip('/')}")
    (folder / "policy.xml").write_text(policy_xml(chosen, namespace) + "\n")
    print(
        f"export ROS_SECURITY_ENABLE=true ROS_SECURITY_STRATEGY=Enforce"
        f" ROS_SECURITY_KEYSTORE={folder.absolute()}\n"
        f"{folder / 'private'} lets anybody in: keep it off the robot"
    )
    return 0


def checked_namespace(name: str) -> str:
    """'/' or '/a/b'; ValueError for what ROS would not take."""
    parts = name.strip("/").split("/") if name.strip("/") else []
    if not all(part.isidentifier() and part.isascii() for part in parts):
        raise ValueError(f"--namespace is {name!r}; wanted letters, digits and _ between slashes")
    return "/" + "/".join(parts)


def checked_domains(domains: list[int]) -> list[int]:
    wrong = [domain for domain in domains if not 0 <= domain <= LARGEST_DOMAIN]
    if wrong:
        raise ValueError(f"--domain is {wrong[0]}; wanted 0 to {LARGEST_DOMAIN}")
    return domains
