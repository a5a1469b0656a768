"""`thor-policy report`: the page says what the bag holds, and nothing of the bag can act in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.recorded_bag import PARAMETERS, FrameRow, RecordedBag, StatusRow, write_bag

from thor_policy_ros.evaluation.cli import main

VOID = {"meta", "img", "br"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "main", "section", "div", "span",
    "i", "b", "p", "ul", "li", "figure", "figcaption", "svg", "desc", "g", "line", "rect", "circle",
    "polyline", "text", "table", "thead", "tbody", "tr", "th", "td", "img", "article", "details",
    "summary",
}  # fmt: skip
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J\u202e&amp;"
SAFETY = {"enabled": "1", "estopped": "0", "interventions.position": "2"}


class Page(HTMLParser):
    """tags: every start tag and its attributes; text: what is read, tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def cell(self, name: str) -> str:
        """Beside the first heading of that name."""
        return next(row[1] for row in self.rows if row[0] == name)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(bag: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Page, str]:
    """The page, and what the command printed."""
    out = bag.with_name("page.html")
    assert main(["report", str(bag), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8")), capsys.readouterr().out


def healthy(count: int = 100) -> list[FrameRow]:
    return [
        FrameRow(
            total_ms=20.0 + k % 10,
            stages={"vision": 5.0, "prefill": 6.0, "denoise": 4.0 + k % 3},
            decision="refill: age" if k % 2 == 0 else "reuse",
        )
        for k in range(count)
    ]


def fine(task: str, seconds: int = 10, **values: str) -> list[StatusRow]:
    return [StatusRow(float(s), f"policy_node: {task}", "well", 0, values) for s in range(seconds)]


def test_a_healthy_run_is_called_so_with_the_figures_of_the_bag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = healthy()
    safety = [
        StatusRow(s, "chunk_executor_node: safety", "watching", 0,
                  {**SAFETY, "interventions.position": str(2 + s)})
        for s in range(10)
    ]  # fmt: skip
    page, printed = report(write_bag(tmp_path / "bag", frames, [*fine("state"), *safety]), capsys)
    assert printed.startswith("HEALTHY: 100 chunks in 10 s")
    totals = [frame.total_ms for frame in frames]
    assert f"{np.percentile(totals, 50):.0f}, {np.percentile(totals, 99):.0f} ms" in page.text
    p50, p95, p99 = np.percentile([f.stages["denoise"] for f in frames], (50, 95, 99))
    assert f"p50 {p50:.3g}, p95 {p95:.3g}, p99 {p99:.3g} ms; 100 frames" in page.text
    assert ["refill: age", "50", "50.0%"] in page.rows and ["reuse", "50", "50.0%"] in page.rows
    assert page.cell("position") == "9", "interventions since the recording began"
    assert page.cell("recorded on") == "robot-7"
    assert page.cell("checkpoint") == "/checkpoints/demo"
    assert "0 of 100 frames took longer" in page.text


def test_misses_refusals_silence_and_errors_are_trouble_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = [FrameRow(150.0, deadline_missed=True, missed_ticks=7 + k) for k in range(60)]
    refused = [FrameRow(30.0, "refused: joint a row 0: nan is not finite", missed_ticks=66)] * 40
    errors = [
        StatusRow(s, "policy_node: camera base", f"stale, 0.{s} s old", 2) for s in range(6)
    ] + [StatusRow(s, "policy_node: camera base", "images come in time") for s in range(6, 10)]
    page, printed = report(write_bag(tmp_path / "bag", slow + refused, errors), capsys)
    assert printed.startswith("TROUBLE: 60% of the frames missed the deadline of 100 ms")
    assert "40 chunks were refused: joint a row 0: nan is not finite" in page.text
    assert "no chunk for 4.0 s, from 5.9 s on" in page.text
    assert "camera base: stale, 0.0 s old (error in 6 of 10 reports, first at 0.0 s)" in page.text
    assert "60 of 100 frames took longer" in page.text
    assert "59 control ticks passed" in page.text, "not the 7 from before the recording"


def test_another_backend_and_other_settings_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = healthy(30) + [FrameRow(9.0, "refill: backend changed", backend="fused")] * 20
    said = [
        StatusRow(1.0, "policy_node: backend", "verified", 0, {"active": "pytorch"}),
        StatusRow(4.0, "policy_node: backend", "verified", 0,
                  {"active": "fused", "notes": "products by oneDNN"}),
        StatusRow(1.0, "policy_node: reuse", "", 0, {"mode": "fixed"}),
        StatusRow(4.0, "policy_node: reuse", "", 0, {"mode": "adaptive"}),
    ]  # fmt: skip
    page, _ = report(write_bag(tmp_path / "bag", frames, said), capsys)
    assert ["0.0 s", "pytorch"] in page.rows and ["3.0 s", "fused"] in page.rows
    assert ["fused: notes", "products by oneDNN", "4.0 s"] in page.rows
    assert ["4.0 s", "reuse: mode", "fixed", "adaptive"] in page.rows


def test_the_worst_moments_show_what_the_policy_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = healthy()
    frames[40] = FrameRow(900.0, image=np.full((400, 800, 3), 200, np.uint8))
    frames[60] = FrameRow(20.0, "reuse", prefix_age_ms=777.0)
    frames[70] = FrameRow(20.0, "refused: it shook")
    page, _ = report(write_bag(tmp_path / "bag", frames), capsys)
    assert "slowest: 900 ms" in page.text and "oldest prefix: 777 ms" in page.text
    assert "refused: it shook" in page.text
    images = page.all("img")
    assert 5 <= len(images) <= 9 and len({image["src"] for image in images}) == len(images)
    for image in images:
        assert image["src"].startswith("data:image/jpeg;base64,/9j/") and image["alt"]
        assert len(image["src"]) < 60_000


def test_the_page_fetches_nothing_and_is_well_formed_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [*healthy(30), FrameRow(200.0, "refused: no", deadline_missed=True)]
    statuses = [StatusRow(0.0, "policy_node: state", "old", 1)]
    page, _ = report(write_bag(tmp_path / "bag", frames, statuses), capsys)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    for _, attributes in page.tags:
        assert not {"href", "srcset", "action", "data", "xlink:href"} & set(attributes)
        assert attributes.get("src", "data:image/jpeg;").startswith("data:image/jpeg;")
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|<script|<link", raw)
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    assert page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    charts = page.all("svg")
    assert len(charts) == 11
    for chart in charts:
        assert chart["role"] == "img" and set(chart["aria-labelledby"].split()) <= set(ids)
    style = raw.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_what_a_bag_says_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [
        FrameRow(20.0, f"refill: {HOSTILE}", instruction=HOSTILE, backend=HOSTILE),
        FrameRow(90.0, f"refused: {HOSTILE}", instruction=HOSTILE, backend=f"{HOSTILE}2"),
    ]
    statuses = [
        StatusRow(0.0, f"{HOSTILE}: safety", HOSTILE, 2, {f"interventions.{HOSTILE}": "1"}),
        StatusRow(0.1, f"{HOSTILE}: safety", HOSTILE, 2, {f"interventions.{HOSTILE}": "4"}),
        StatusRow(0.1, "x: backend", "", 0, {"notes": HOSTILE, "torch_version": HOSTILE}),
    ]
    parameters = {**PARAMETERS, "camera.base.slot": HOSTILE, HOSTILE: [HOSTILE]}
    bag = write_bag(tmp_path / HOSTILE.replace("/", "_")[:40], frames, statuses, parameters)
    page, _ = report(bag, capsys)
    assert {tag for tag, _ in page.tags} <= ALLOWED, "no script, no tag that is not ours"
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 10, "it is shown, as text"
    raw = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\x1b" not in raw and "\u202e" not in raw


@pytest.mark.parametrize("share", [0.55, 0.8, 0.99])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "file cut"])
def test_a_recording_cut_short_is_shown_as_far_as_it_goes(
    share: float, killed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """killed: no metadata was written; otherwise a copy of the file was not finished."""
    bag = write_bag(tmp_path / "bag", healthy(300), fine("state", 30))
    file = bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    if killed:
        (bag / "metadata.yaml").unlink()
    page, printed = report(bag, capsys)
    assert printed.startswith("LOOK AT IT: the recording was cut short")
    count = int(printed.rsplit(", ", 1)[1].split()[0])
    assert 60 <= count <= 300 and count % 2 in (0, 1)
    totals = [20.0 + k % 10 for k in range(count)]
    assert f"{np.percentile(totals, 50):.0f}, {np.percentile(totals, 99):.0f} ms" in page.text
    assert page.all("img"), "the images are found too"
    assert page.cell("recorded on") == "robot-7"


def test_where_there_is_nothing_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, printed = report(write_bag(tmp_path / "quiet", [], fine("state")), capsys)
    assert printed.startswith("NOTHING TO JUDGE: no frame was computed in the 9.0 s")
    assert "Latency" not in page.text

    empty = RecordedBag(tmp_path / "empty")
    empty.close()
    assert main(["report", str(tmp_path / "empty")]) == 2
    assert "holds no message: nothing was published" in capsys.readouterr().err

    begun = write_bag(tmp_path / "begun", healthy(5))
    (begun / "metadata.yaml").unlink()
    (begun / "begun.mcap").write_bytes((begun / "begun.mcap").read_bytes()[:5000])
    assert main(["report", str(begun)]) == 2
    assert "cut short before its first megabyte" in capsys.readouterr().err

    shutil.rmtree(begun)
    assert main(["report", str(begun)]) == 2
    assert "holds no .mcap file: it is no recording" in capsys.readouterr().err
    assert not begun.with_suffix(".html").exists()


def test_bytes_that_were_never_written_end_no_report_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = write_bag(tmp_path / "bag", healthy(300))
    file = bag / "bag.mcap"
    whole = file.read_bytes()
    (bag / "metadata.yaml").unlink()
    random = np.random.default_rng(0)
    for case in range(8):
        data = np.frombuffer(whole, np.uint8).copy()
        spoilt = random.integers(len(data) // 2, len(data), 4000)
        data[spoilt] = random.integers(0, 255, 4000)
        file.write_bytes(data.tobytes() if case else b"no bag at all")
        status = main(["report", str(bag)])
        assert status == 0 or (status == 2 and "error: " in capsys.readouterr().err)


def test_it_wants_no_ros(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / "bag", healthy(20))
    blocked = (
        "import sys; sys.modules['rclpy'] = None; "
        "from thor_policy_ros.evaluation.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", blocked, "report", str(bag)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert bag.with_suffix(".html").is_file()
