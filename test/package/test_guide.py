"""The user guide: complete, without a dead link, and offline."""

from __future__ import annotations

import ast
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from thor_policy_ros.evaluation import checks, file_checks, graph_checks, machine_checks
from thor_policy_ros.evaluation.cli import COMMANDS
from thor_policy_ros.evaluation.enclaves import CAMERAS, OPERATOR, ROBOT, enclaves
from thor_policy_ros.ros.parameter_tables import CAMERA, EXECUTOR, POLICY, SIM_ROBOT
from thor_policy_ros.ros.viewer_parameters import VIEWER
from tools import guide, guide_checks, guide_commands, guide_launch, guide_results, guide_runs
from tools.guide_tables import MARKED, PLACEHOLDER, ROOT, TABLES, filled_in, message_table

PAGES = sorted(guide.DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole guide, built as by `make docs`: any warning fails here."""
    folder = tmp_path_factory.mktemp("guide")
    guide.stage(folder / "source")
    guide.build(folder / "source", folder / "site")
    return folder / "site"


def test_every_page_is_in_the_navigation_once_and_is_built(site: Path) -> None:
    listed = [page for chapter in guide.NAVIGATION.values() for page in chapter]
    there = {place.removesuffix(".md") for place in guide.pages()} - {"index"}
    assert sorted(listed) == sorted(there), "list the page in NAVIGATION of tools/guide.py"
    assert all((site / f"{page}.html").is_file() for page in [*listed, "index"])


def test_no_page_asks_the_network_for_anything(site: Path) -> None:
    loaded = [(page.name, url) for page in site.rglob("*.html") for url in loads(page)]
    assert len(loaded) > len(PAGES), "no style or script was found at all"
    assert [(page, url) for page, url in loaded if re.match(r"(?:\w+:)?//", url)] == []
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert re.findall(r"@import|url\(['\"]?(?:https?:)?//", styles) == []


def loads(page: Path) -> list[str]:
    """What a browser fetches to show the page."""

    class Loads(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found = dict(attrs)
            if tag in ("script", "img", "iframe", "source"):
                urls.append(found.get("src") or "")
            if tag == "link" and "stylesheet" in (found.get("rel") or ""):
                urls.append(found.get("href") or "")

    urls: list[str] = []
    Loads().feed(page.read_text())
    return [url for url in urls if url]


def test_search_is_a_file_and_finds_parameters(site: Path) -> None:
    index = (site / "searchindex.js").read_text()
    assert "kv_reuse_freq" in index and "searchindex.js" in (site / "search.html").read_text()


def test_tables_of_the_code_stand_in_the_pages(site: Path) -> None:
    assert PLACEHOLDER.strip("*\n") not in (site / "parameters.html").read_text()
    text = re.sub(r"<[^>]+>", "", (site / "parameters.html").read_text())
    rows = (*POLICY, *CAMERA, *EXECUTOR, *SIM_ROBOT, *VIEWER)
    assert [row.name for row in rows if row.name not in text] == []
    messages = (site / "messages.html").read_text()
    assert [
        f.stem for f in (ROOT / "msg").glob("*.msg") if f'id="{f.stem.lower()}"' not in messages
    ] == []


def test_every_link_to_nothing_fails_the_build(tmp_path: Path) -> None:
    wrong = "[a](nowhere.md) [b](other.md#no-such-heading) ![c](no.png) [d](#no-place)"
    toctree = "```{toctree}\nother\n```"
    guide.put(tmp_path / "source" / "index.md", f"# Home\n\n{wrong}\n\n{toctree}\n")
    guide.put(tmp_path / "source" / "other.md", "# Other\n\nText.\n")
    guide.put(tmp_path / "source" / "lonely.md", "# In no chapter\n\nText.\n")
    with pytest.raises(guide.GuideError) as raised:
        guide.build(tmp_path / "source", tmp_path / "site")
    said = str(raised.value)
    named = ("nowhere.md", "no-such-heading", "no.png", "no-place", "lonely.md")
    assert [one for one in named if one not in said] == []


def test_a_link_to_no_file_of_the_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(guide.GuideError, match=r"docs/index.md links to \.\./msg/None.msg"):
        guide.with_staged_links("[x](../msg/None.msg)", guide.DOCS / "index.md", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_follows_from_the_code_is_not_committed(page: Path) -> None:
    for match in MARKED.finditer(page.read_text()):
        assert match["name"] in {*TABLES, "contents"}
        assert match["text"] in (PLACEHOLDER, ""), f"{match['name']} is filled in"


def test_every_table_has_its_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in TABLES if f"<!-- table: {name} -->" not in text] == []


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown table 'nothing'"):
        filled_in("<!-- table: nothing -->\n<!-- end -->")


@pytest.mark.parametrize("path", sorted((ROOT / "msg").glob("*.msg")), ids=lambda p: p.stem)
def test_a_message_table_has_a_row_for_every_field(path: Path) -> None:
    fields = [
        line.split()[1]
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert re.findall(r"^\| `(\w+)`", message_table(path), re.MULTILINE) == fields


def test_the_table_of_topics_has_every_name_of_every_node() -> None:
    """Of the table of DDS security, which is held against the running nodes."""
    rows, node = dict[str, str](), ""
    for line in (guide.DOCS / "messages.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4:
            node = cells[0] or node
            rows[node] = rows.get(node, "") + cells[1]
    of_parameters = {*CAMERAS, "camera_base/camera_info", "camera_wrist/camera_info"}
    of_all = {"rosout", "parameter_events", "transition_event", "clock"}
    for enclave in enclaves():
        if enclave.node == OPERATOR:
            continue
        by_parameter = of_parameters if enclave.node != ROBOT else set()
        topics = {*enclave.publish, *enclave.subscribe} - by_parameter
        names = {topic.rpartition("/")[2] for topic in topics} - of_all
        served = {s.rpartition("/")[2] for s in enclave.serve if s.count("/") == 1}
        names |= served & {"reset", "enable", "estop", "reset_estop"}
        missing = {name for name in names if not re.search(rf"\b{name}\b", rows[enclave.node])}
        assert names and not missing, (enclave.node, missing)


def test_every_command_and_its_options_are_listed() -> None:
    text = guide_commands.commands()
    assert [c.name for c in COMMANDS if f"## thor-policy {c.name}\n" not in text] == []
    assert "### thor-policy bench latency" in text
    assert "| `--frames FRAMES` | of each (default: 50) |" in text
    assert str(ROOT) not in text and str(Path.home()) not in text


def test_launch_arguments_are_those_of_the_files() -> None:
    names = {one.name for one in guide_launch.arguments("policy.launch.py")}
    source = (guide_launch.FOLDER / "policy.launch.py").read_text()
    assert names == set(re.findall(r'DeclareLaunchArgument\(\s*"(\w+)"', source))
    table = guide_launch.table("policy.launch.py", "viewers.launch.py")
    assert table.count("| `config` |") == 1 and "| `rviz` | `false` |" in table
    assert "SHARE/checkpoints/demo" in guide_launch.table("demo.launch.py")


JUDGES = (machine_checks, graph_checks, file_checks)


@pytest.mark.parametrize("module", JUDGES, ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_troubleshooting_has_every_fault_that_the_doctor_knows(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: set[int] = set()

    def noted(name: str) -> object:
        def judged(*words: str) -> checks.Check:
            said.add(sys._getframe(1).f_lineno)
            return real(*words)

        real = getattr(checks, name)
        return judged

    for name in ("note", "wrong"):
        monkeypatch.setattr(module, name, noted(name))
    assert guide_checks.faults()
    tree = ast.parse(Path(str(module.__file__)).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = ("note", "wrong", "judge")
    sites = {c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id in names}
    assert sites and sites - said == set(), "lines that no made-up machine brings out"


def test_troubleshooting_names_no_folder_of_this_machine() -> None:
    table = guide_checks.table()
    assert "/tmp" not in table and str(ROOT) not in table and table.count("\n") > 30


def test_measured_tables_are_of_the_stored_runs(tmp_path: Path) -> None:
    stored = json.loads((guide_results.RESULTS / "bench_latency_h200.json").read_text())
    p50 = stored["backends"][0]["stages_ms"]["frame"]["p50"]
    text = guide_results.latency()
    assert f"| `pytorch` | bfloat16 | {p50:.1f} / " in text
    assert text.index("NVIDIA H200") < text.index("cpu (x86_64)")
    assert guide_results.latency(tmp_path) == guide_results.NOTHING
    inside = {"sections": {"bench": {"all": stored}}}
    (tmp_path / "gpu.json").write_text(json.dumps(inside))
    assert "[gpu.json](../benchmarks/results/gpu.json)" in guide_results.latency(tmp_path)


def test_runs_that_ask_whether_something_holds_have_tables(tmp_path: Path) -> None:
    assert guide_runs.soaks(tmp_path) == guide_runs.exhausted(tmp_path) == guide_results.NOTHING
    held = {"gpu_allocated_mb": 1.0, "gpu_used_mb": 0.0}
    load = {"error": "OutOfMemoryError: a | b", "bit_equal": True, "still_held_mb": held}
    found = {
        "frames": {"a": 5}, "refused_frames": 1, "loads": {"fused": load}, "faults": ["not all"],
        "frame": {"error": "OutOfMemoryError", "bit_equal_with_memory_back": False},
        "loads_afterwards": {"fused": "verified"},
    }  # fmt: skip
    run = {"command": "c", "device": "cpu", "sections": {"exhausted": {"all": found}}}
    (tmp_path / "gpu.json").write_text(json.dumps(run))
    assert guide_runs.exhausted(tmp_path) == guide_results.NOTHING, "a rehearsal"
    (tmp_path / "gpu.json").write_text(json.dumps({**run, "device": "cuda"}))
    text = guide_runs.exhausted(tmp_path)
    assert (
        "| while `fused` loads | OutOfMemoryError: a / b | yes | allocated 1.0 MB, used 0.0 MB | "
        "verified |" in text
    )
    assert "`c` ([gpu.json](../benchmarks/results/gpu.json)), 5 frames of `a`, 1 refused" in text
    assert "| under a frame | OutOfMemoryError | no | | |\n- not all" in text
    several = [{"sections": ["demo"], "command": "d"}, {"sections": ["exhausted"], "command": "e"}]
    (tmp_path / "gpu.json").write_text(json.dumps({**run, "device": "cuda", "runs": several}))
    assert "`e` ([gpu.json]" in guide_runs.exhausted(tmp_path), "of the run that it is from"


def test_targets_are_of_runs_on_a_gpu_alone(tmp_path: Path) -> None:
    row = {"engine": "fused", "kind": "one step", "target": 0.35, "measured": 0.4, "met": False}
    run = {"command": "c", "sections": {"table": {"rows": [row], "of": "a rehearsal"}}}
    (tmp_path / "fused.json").write_text(json.dumps(run))
    assert guide_results.targets(tmp_path) == guide_results.NOTHING
    run["sections"]["table"]["of"] = "a GPU"
    (tmp_path / "fused.json").write_text(json.dumps(run))
    assert "| `fused` | one step | 0.35 ms | 0.4 ms |  | no |" in guide_results.targets(tmp_path)
