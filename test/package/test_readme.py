"""README.md is short, its links lead somewhere, and its example runs."""

import re
import subprocess
import sys

from thor_policy_ros.backends.registry import BACKENDS, REMOTE
from tools.guide import DOCS, ROOT

README = ROOT / "README.md"
TEXT = README.read_text()
LONGEST_BYTES = 13_000


def test_it_is_short_and_the_rest_is_in_the_guide() -> None:
    assert len(TEXT.encode()) < LONGEST_BYTES, "move what is long to a page of docs/"
    assert "<!-- table:" not in TEXT


def test_a_stranger_finds_the_way() -> None:
    """The two commands stand near the top, before the robot and the figures."""
    places = [TEXT.index(words) for words in (
        "    make demo ", "    make test ", "## On a robot", "    ros2 launch thor_policy_ros",
        "## Backends", "## Read on", "## Measured", "**Not measured, not run.**",
    )]  # fmt: skip
    assert places == sorted(places)
    assert TEXT[: places[0]].count("\n") < 25


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_backends_are_those_of_the_registry() -> None:
    table = TEXT[TEXT.index("## Backends") : TEXT.index("## Read on")]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([\w/]+)`", cell)]
    found = {spelt for name in names for spelt in _spelt_out(name)}
    assert found == {*BACKENDS, REMOTE.name}


def _spelt_out(name: str) -> list[str]:
    """fused_freq1/2/3 is three names."""
    stem, *others = name.split("/")
    return [stem, *(stem[:-1] + other for other in others)]


def test_its_python_example_runs_as_it_stands() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    quick_start = (DOCS / "quick_start.md").read_text()
    assert re.findall(r"```python\n(.*?)```", quick_start, re.DOTALL) == [example]
    ended = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "FrameTiming(preprocess_ms=" in ended.stdout
