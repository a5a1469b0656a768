"""What the fused engines are to reach on an H200, and whether it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TARGETS_MS = {  # of the H200, p50: bfloat16, FP8
    "full, 10 steps": (10.0, 7.0),
    "full, 3 steps": (6.5, 4.5),
    "reuse, 10 steps": (4.0, 3.5),
    "one step": (0.35, 0.3),
}
TARGET_COSINE, TARGET_READY_S, TARGET_P99_OVER_P50 = (0.9995, 0.999), 30.0, 1.05


def table_of(sections: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Targets beside what was measured. sections: of `fused_on_cuda.py`. of: what it was run on."""
    rows = []
    for index, name in enumerate(("fused", "fused_fp8")):
        measured = sections.get("frames", {}).get(name, {}).get("ms", {})
        for kind, targets in TARGETS_MS.items():
            rows.append(row_of(name, kind, targets[index], measured.get(kind)))
        cosine = sections.get("precision", {}).get(name, {}).get("actions_cosine")
        wanted = TARGET_COSINE[index]
        rows.append(
            {"engine": name, "kind": "worst cosine", "target": wanted, "measured": cosine,
             "met": cosine is not None and cosine >= wanted}
        )  # fmt: skip
        seconds = sections.get("ready", {}).get(name, {}).get("ready_s")
        rows.append(
            {"engine": name, "kind": "ready, s", "target": TARGET_READY_S, "measured": seconds,
             "met": seconds is not None and seconds <= TARGET_READY_S}
        )  # fmt: skip
    return {"rows": rows, "of": of}


def row_of(name: str, kind: str, target: float, ms: dict[str, float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"engine": name, "kind": kind, "target": target, "measured": None}
    if ms is None:
        return {**row, "met": False}
    steady = kind == "one step" or ms["p99"] <= TARGET_P99_OVER_P50 * ms["p50"]
    return {
        **row, "measured": ms["p50"], "p99": ms["p99"],
        "met": ms["p50"] <= target, "p99_within_5_percent": steady,
    }  # fmt: skip


def print_table(result: dict[str, Any]) -> None:
    for row in result.get("rows", []):
        measured = "-" if row["measured"] is None else f"{row['measured']:.4f}"
        p99 = f"p99 {row['p99']:.3f}" if "p99" in row else ""
        met = "met" if row["met"] else "not met"
        print(f"{row['engine']:<10} {row['kind']:<16} {row['target']:>8} {measured:>9} {met} {p99}")
