"""The user guide: python3 -m tools.guide builds docs/ into out/guide/site.

Pages are copied beside each other into out/guide/source with their tables filled in (see
tools/guide_tables.py), and Sphinx makes a site of them that needs no server and no network. Any
warning, such as a link to nothing, is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.guide_tables import TABLES, filled_in

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OUT = ROOT / "out" / "guide"

# Chapters and their pages, as the site's navigation shows them. Every page of docs/ is in one.
NAVIGATION: dict[str, tuple[str, ...]] = {
    "Begin": ("quick_start", "your_robot", "your_checkpoint", "backends", "tuning"),
    "Operate": (
        "operating",
        "two_hosts",
        "troubleshooting",
        "safety",
        "security",
        "live_switching",
        "bags",
        "report",
        "interop",
        "libero",
        "thor",
    ),
    "Understand": ("architecture", "smooth_motion", "reuse", "faults"),
    "Engines": ("fused", "kernels", "tensorrt", "torch_trt", "checkpoints"),
    "Reference": ("parameters", "messages", "launch", "commands"),
    "Measured": ("benchmarks/README", "benchmarks/optimisation", "CHANGELOG"),
}
ELSEWHERE = ("benchmarks/README.md", "benchmarks/optimisation.md", "CHANGELOG.md")

_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)([^)]*\))")


class GuideError(Exception):
    """The guide cannot be built; the text says which page and why."""


def contents() -> str:
    """The navigation for Sphinx: one chapter after another."""
    chapters = (
        "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {name}\n", *pages, "```\n"])
        for name, pages in NAVIGATION.items()
    )
    return "\n".join(chapters)


def pages() -> dict[str, Path]:
    """File of each page by its place in the site: docs/ lies at the top, the rest as here."""
    found = {file.name: file for file in sorted(DOCS.glob("*.md"))}
    return {**found, **{name: ROOT / name for name in ELSEWHERE}}


def stage(source: Path, found: Mapping[str, Path] | None = None) -> None:
    """Write every page and every file that it links to below `source`.

    found: pages as `pages` gives them. GuideError for a link to a file that does not exist.
    """
    shutil.rmtree(source, ignore_errors=True)
    tables = {**TABLES, "contents": contents}
    for place, file in (pages() if found is None else found).items():
        text = filled_in(file.read_text(), tables)
        put(source / place, with_staged_links(text, file, source))


def with_staged_links(text: str, file: Path, source: Path) -> str:
    """`text` of a page with links as the site has them; the files they point to are copied."""

    def staged(match: re.Match[str]) -> str:
        target = (file.parent / match[2]).resolve()
        if not target.is_file():
            raise GuideError(f"{file.relative_to(ROOT)} links to {match[2]}, which is no file")
        place = place_of(target)
        if target.suffix != ".md" and not (source / place).exists():
            (source / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, source / place)
        return f"{match[1]}/{place}{match[3]}"

    return _LINK.sub(staged, text)


def place_of(file: Path) -> Path:
    """Where a file of the checkout lies in the site's source."""
    return file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT)


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def build(source: Path, site: Path) -> None:
    """Make the site of staged pages. GuideError with every warning of Sphinx."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(DOCS)]
    command += ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    command += ["-d", str(site.parent / "doctrees"), str(source), str(site)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise GuideError(f"the guide has faults:\n{done.stderr.strip()}")


def main() -> int:
    """Stage, build, and say where the site is."""
    try:
        stage(OUT / "source")
        shutil.rmtree(OUT / "site", ignore_errors=True)
        build(OUT / "source", OUT / "site")
    except GuideError as error:
        print(f"guide: {error}", file=sys.stderr)
        return 1
    print(f"guide: {len(pages())} pages; open {(OUT / 'site' / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
