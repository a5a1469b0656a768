"""The tables of the guide that follow from the code; `make docs` fills them in.

A table stands in a page of docs/ between `<!-- table: NAME -->` and `<!-- end -->`. What is
committed between the two is `PLACEHOLDER`, so that no figure and no default can go stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tools import guide_checks, guide_commands, guide_launch, guide_results, guide_runs

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "*(filled in by `make docs`)*\n"
MARKED = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
_FIELD = re.compile(r"^(?P<type>\S+) (?P<name>\w+)\s*# \[(?P<unit>[^\]]+)\] (?P<what>.+)$")


def message_table(path: Path) -> str:
    """Fields of a .msg file with their units."""
    lines = ["| field | type | unit | what |", "|---|---|---|---|"]
    for line in path.read_text().splitlines():
        match = _FIELD.match(line)
        if match:
            unit = "" if match["unit"] == "-" else match["unit"]
            what = match["what"].replace("|", "\\|")
            lines.append(f"| `{match['name']}` | {match['type']} | {unit} | {what} |")
    return "\n".join(lines) + "\n"


def messages() -> str:
    """A heading and a table for every message of the package."""
    files = sorted((ROOT / "msg").glob("*.msg"))
    return "\n".join(f"## {file.stem}\n\n{message_table(file)}" for file in files)


def parameter_table(name: str) -> str:
    """Rows of one table of ros/parameter_tables.py."""
    from thor_policy_ros.ros import parameter_tables
    from thor_policy_ros.ros.parameters import markdown_table

    return markdown_table(getattr(parameter_tables, name))


def health_table() -> str:
    """The thresholds of /diagnostics."""
    from thor_policy_ros.ros.health_parameters import HEALTH
    from thor_policy_ros.ros.parameters import markdown_table

    return markdown_table(HEALTH)


def viewer_table() -> str:
    """Parameters of chunk_viewer_node."""
    from thor_policy_ros.ros.parameters import markdown_table
    from thor_policy_ros.ros.viewer_parameters import VIEWER

    return markdown_table(VIEWER)


def fault_table(links: bool) -> str:
    """The stored run of `thor-policy faults`: of the link between two hosts, or the others."""
    from thor_policy_ros.ros.fault_record import table

    run = json.loads((guide_results.RESULTS / "faults.json").read_text())
    rows = [row for row in run["faults"] if (row["group"] == "link") == links]
    return table(rows, {} if links else run["not_run"])


TABLES: dict[str, Callable[[], str]] = {
    "messages": messages,
    "policy_node": lambda: parameter_table("POLICY"),
    "camera": lambda: parameter_table("CAMERA"),
    "chunk_executor_node": lambda: parameter_table("EXECUTOR"),
    "sim_robot_node": lambda: parameter_table("SIM_ROBOT"),
    "chunk_viewer_node": viewer_table,
    "diagnostics_thresholds": health_table,
    "policy.launch.py": lambda: guide_launch.table("policy.launch.py", "viewers.launch.py"),
    "executor.launch.py": lambda: guide_launch.table("executor.launch.py"),
    "demo.launch.py": lambda: guide_launch.table("demo.launch.py"),
    "viewers.launch.py": lambda: guide_launch.table("viewers.launch.py"),
    "commands": guide_commands.commands,
    "checks": guide_checks.table,
    "faults": lambda: fault_table(links=False),
    "soak": guide_runs.soaks,
    "gpu exhausted": guide_runs.exhausted,
    "link faults": lambda: fault_table(links=True),
    "backends": guide_results.backends,
    "latency": guide_results.latency,
    "precision": guide_results.precision,
    "targets": guide_results.targets,
}


def filled_in(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """`text` with each marked table made anew. ValueError names an unknown table."""

    def table(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise ValueError(f"unknown table {match['name']!r}; one of: {', '.join(tables)}")
        return match[1] + "\n" + tables[match["name"]]() + "\n" + match[4]

    return MARKED.sub(table, text)
