"""The package's files agree with each other: version, name, licence, messages, dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import thor_policy_ros

ROOT = Path(thor_policy_ros.__file__).resolve().parents[1]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
CMAKE = (ROOT / "CMakeLists.txt").read_text()

# In package.xml for the build and the launch system, not for an import of ours.
NOT_IMPORTED = {
    "ament_cmake",
    "ament_cmake_python",
    "builtin_interfaces",
    "rosidl_default_generators",
    "rosidl_default_runtime",
}


def test_version_is_the_same_everywhere() -> None:
    setup = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    version = thor_policy_ros.__version__
    assert MANIFEST.findtext("version") == version
    assert setup.stdout.split()[-2:] == ["thor_policy_ros", version]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == version


def test_name_is_the_same_everywhere() -> None:
    assert MANIFEST.findtext("name") == "thor_policy_ros"
    assert re.search(r"^project\(thor_policy_ros\b", CMAKE, re.MULTILINE)
    assert (ROOT / "resource" / "thor_policy_ros").is_file()


def test_licence_is_apache_and_nobody_elses_copyright_is_claimed() -> None:
    licence = MANIFEST.find("license")
    assert licence is not None and licence.text == "Apache-2.0"
    text = (ROOT / str(licence.get("file"))).read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    sources = [f for folder in ("thor_policy_ros", "launch", "tools") for f in _python(folder)]
    assert sources
    assert [
        f for f in sources if re.search(r"copyright\s*(\(c\)|©|\d{4})", f.read_text(), re.I)
    ] == []


def test_every_message_file_is_generated() -> None:
    listed = set(re.findall(r'"msg/(\w+)\.msg"', CMAKE))
    assert listed == {f.stem for f in (ROOT / "msg").glob("*.msg")}


def test_every_installed_command_has_its_main() -> None:
    commands = re.findall(r"^install_command\((\S+) (\S+) (\S+)\)", CMAKE, re.MULTILINE)
    assert {name for name, _, _ in commands} == {
        "policy_node",
        "chunk_executor_node",
        "chunk_viewer_node",
        "sim_robot_node",
        "demo",
        "thor-policy",
    }
    for _, module, _ in commands:
        file = ROOT / "thor_policy_ros" / (module.replace(".", "/") + ".py")
        tree = ast.parse(file.read_text())
        assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            file
        )


@pytest.mark.parametrize("folder", ["launch", "config", "checkpoints"])
def test_installed_folders_exist(folder: str) -> None:
    """CMake skips a folder that is missing; a package without it would be of no use."""
    assert any((ROOT / folder).iterdir())


def test_ros_imports_and_dependencies_match() -> None:
    depended = {
        str(e.text)
        for tag in ("depend", "exec_depend")
        for e in MANIFEST.findall(tag)
        if not str(e.text).startswith("python3-")
    }
    imported = {n for f in (*_python("thor_policy_ros/ros"), *_python("launch")) for n in _roots(f)}
    of_ros = {n for n in imported if re.search(r"_(msgs|srvs|interfaces|py|python|ros)$", n)}
    of_ros |= imported & {"rclpy", "launch"}
    of_ros -= {"thor_policy_ros", "cv_bridge"}
    assert of_ros - depended == set(), "imported, and not in package.xml"
    assert depended - of_ros - NOT_IMPORTED == set(), "in package.xml, and imported nowhere"


def _python(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _roots(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    return {name.split(".")[0] for name in names}
