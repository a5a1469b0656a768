"""Where ROS 2 is, and the environment that its commands want.

An ament prefix is a folder as ROS 2 installs it: bin/, lib/, share/. `.venv` itself becomes one.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from pathlib import Path

# What a half-sourced or foreign ROS leaves behind, and what colcon and the wheels set themselves.
_FOREIGN = (
    "AMENT_CURRENT_PREFIX",
    "CMAKE_PREFIX_PATH",
    "COLCON_PREFIX_PATH",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "_ROS_WHEELS_BOOTSTRAP_COMPLETE",
)


def sourced_ros(environ: Mapping[str, str], own_prefix: Path) -> list[Path]:
    """The ament prefixes of a sourced ROS 2 that can build packages; empty when there is none.

    own_prefix: our `.venv`, which holds ament_cmake too when it was made from wheels and
    stands in AMENT_PREFIX_PATH after `source .venv/setup.bash`. It does not count.
    """
    entries = [Path(p) for p in environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    foreign = [p for p in entries if not _inside(p, own_prefix)]
    if any((p / "share" / "ament_cmake").is_dir() for p in foreign):
        return foreign
    return []


def missing_ros_packages(package_xml: Path, prefixes: Iterable[Path]) -> list[str]:
    """Packages that package.xml wants of ROS and no prefix holds, sorted."""
    root = ElementTree.parse(package_xml).getroot()
    tags = ("buildtool_depend", "build_depend", "depend", "exec_depend")
    wanted = {str(e.text).strip() for tag in tags for e in root.findall(tag)}
    from_ros = {name for name in wanted if not name.startswith("python3-")}
    roots = list(prefixes)
    return sorted(n for n in from_ros if not any((p / "share" / n).is_dir() for p in roots))


def environment(environ: Mapping[str, str], venv: Path, ros: Iterable[Path]) -> dict[str, str]:
    """The environment to build and run in: `venv` in front of the sourced ROS, or alone.

    Without a sourced ROS, variables of another one are dropped: its libraries do not fit the
    wheels, which find their own. The middleware is then the one that the wheels bring.
    """
    prefixes = [venv, *ros]
    env = dict(environ)
    if len(prefixes) == 1:
        for name in _FOREIGN:
            env.pop(name, None)
        env["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"
    else:
        env["LD_LIBRARY_PATH"] = _prepended(venv / "lib", env.get("LD_LIBRARY_PATH", ""))
    env["AMENT_PREFIX_PATH"] = os.pathsep.join(str(p) for p in prefixes)
    env["PATH"] = _prepended(venv / "bin", env.get("PATH", os.defpath))
    env["VIRTUAL_ENV"] = str(venv)
    return env


def _prepended(folder: Path, path: str) -> str:
    rest = [p for p in path.split(os.pathsep) if p and p != str(folder)]
    return os.pathsep.join([str(folder), *rest])


def _inside(path: Path, folder: Path) -> bool:
    resolved, parent = path.resolve(), folder.resolve()
    return resolved == parent or parent in resolved.parents
