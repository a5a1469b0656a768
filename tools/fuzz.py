"""python -m tools.fuzz --runs N: feed every reader of outside bytes with what no one would write.

Each target is a process of its own, guided by coverage (atheris, libFuzzer). A malformed input may
end in ValueError alone; anything else, a hang or the end of the process is a finding, whose input
is kept in --corpus. With --json the runs and the size of the corpus of each are recorded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_BYTES, HANG_S, MEMORY_MB = 16384, 20, 3000
SAID_LAST = 1500


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing was found."""
    from tools.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="at most, for each; 0: no bound")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=1, help="0: another one each time")
    parser.add_argument("--corpus", type=Path, help="kept between runs; default: none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inner:
        fuzz(options.inner, options.corpus, options.runs, options.seconds, options.seed)
    with tempfile.TemporaryDirectory(prefix="thor_policy_corpus_") as unkept:
        corpus = options.corpus or Path(unkept)
        found = {name: _process(name, corpus / name, options) for name in options.target or TARGETS}
    if options.json:
        record = {"targets": found, "max_bytes": MAX_BYTES, "seed": options.seed}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(result["finding"] for result in found.values()) else 0


def _process(name: str, corpus: Path, options: argparse.Namespace) -> dict[str, Any]:
    from tools.fuzz_targets import TARGETS

    corpus.mkdir(parents=True, exist_ok=True)
    for seed in TARGETS[name].seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    command = [sys.executable, "-m", "tools.fuzz", "--inner", name, "--corpus", str(corpus)]
    command += ["--runs", str(options.runs), "--seed", str(options.seed)]
    command += ["--seconds", str(options.seconds)]
    begun_s = time.monotonic()
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ)
    said = (done.stdout + done.stderr).decode(errors="replace")
    runs = re.findall(r"Done (\d+) runs|^#(\d+)", said, re.MULTILINE)
    result = {
        "runs": max((int(a or b) for a, b in runs), default=0),
        "corpus": len(list(corpus.iterdir())),
        "seconds": round(time.monotonic() - begun_s, 1),
        "finding": said[-SAID_LAST:].splitlines() if done.returncode else [],
    }
    print(f"{name}: {result['runs']} runs, {'FOUND' if done.returncode else 'nothing'}", flush=True)
    if done.returncode:
        print(_finding(said))
    return result


def _finding(said: str) -> str:
    start = said.find("=== Uncaught Python exception")
    return said[start if start >= 0 else -SAID_LAST :][:SAID_LAST]


def fuzz(name: str, corpus: Path, runs: int, seconds: int, seed: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["thor_policy_ros"], enable_loader_override=False):
        from tools.fuzz_targets import TARGETS

        run = TARGETS[name].run
        with suppress(Exception):  # what it is in truth comes out below
            run(b"")  # imports what it needs, instrumented

    def once(data: bytes) -> None:
        _quietly(run, data)

    words = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}"]
    words += [f"-rss_limit_mb={MEMORY_MB}", f"-artifact_prefix={corpus}.found."]
    words += [f"-max_total_time={seconds}"] if seconds else []
    atheris.Setup([sys.argv[0], *words, str(corpus)], once)
    atheris.Fuzz()


def _quietly(run: Any, data: bytes) -> None:
    try:
        run(data)
    except ValueError:
        return


if __name__ == "__main__":
    sys.exit(main())
