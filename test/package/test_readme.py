"""README.md says what the code says."""

import re
import subprocess
import sys

import pytest

from tools.readme_tables import README, ROOT, TABLES, filled_in, message_table


def test_its_tables_are_those_of_the_code() -> None:
    text = README.read_text()
    assert filled_in(text) == text, "run `make readme`"


@pytest.mark.parametrize("name", TABLES)
def test_it_has_every_table(name: str) -> None:
    assert f"<!-- table: {name} -->" in README.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "msg").glob("*.msg")), ids=lambda p: p.stem)
def test_a_message_table_has_a_row_for_every_field(path) -> None:
    fields = [
        line.split()[1]
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    rows = re.findall(r"^\| `(\w+)`", message_table(path), re.MULTILINE)
    assert rows == fields


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_its_python_example_runs_as_it_stands() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    ended = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "FrameTiming(preprocess_ms=" in ended.stdout


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown table 'nothing'"):
        filled_in("<!-- table: nothing -->\n<!-- end -->")
