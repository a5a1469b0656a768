"""The tables of README.md that follow from the code: python3 -m tools.readme_tables [--check].

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Run `make readme` after changing
a message, a parameter or a launch argument.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
_MARKED = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
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


def parameter_table(name: str) -> str:
    """Rows of one table of ros/parameter_tables.py."""
    from thor_policy_ros.ros import parameter_tables
    from thor_policy_ros.ros.parameters import markdown_table

    return markdown_table(getattr(parameter_tables, name))


TABLES: dict[str, Callable[[], str]] = {
    "ActionChunk": lambda: message_table(ROOT / "msg" / "ActionChunk.msg"),
    "ChunkFeedback": lambda: message_table(ROOT / "msg" / "ChunkFeedback.msg"),
    "FrameInputs": lambda: message_table(ROOT / "msg" / "FrameInputs.msg"),
    "FrameLatency": lambda: message_table(ROOT / "msg" / "FrameLatency.msg"),
    "EpisodeResult": lambda: message_table(ROOT / "msg" / "EpisodeResult.msg"),
    "policy_node": lambda: parameter_table("POLICY"),
    "camera": lambda: parameter_table("CAMERA"),
    "chunk_executor_node": lambda: parameter_table("EXECUTOR"),
    "sim_robot_node": lambda: parameter_table("SIM_ROBOT"),
}


def filled_in(text: str) -> str:
    """`text` with each marked table made anew. ValueError names an unknown table."""

    def table(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise ValueError(f"unknown table {match['name']!r}; one of: {', '.join(TABLES)}")
        return match[1] + TABLES[match["name"]]() + match[3]

    return _MARKED.sub(table, text)


def main() -> None:
    text = README.read_text()
    new = filled_in(text)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md's tables are out of date; run `make readme`" if new != text else 0)
    README.write_text(new)


if __name__ == "__main__":
    main()
