"""Tables of runs that ask whether something holds: the soak, a GPU without memory."""

from __future__ import annotations

from pathlib import Path

from tools.guide_results import NOTHING, RESULTS, Row, everything, link


def exhausted(folder: Path = RESULTS) -> str:
    """Section `exhausted` of every stored run of benchmarks/gpu_checks.py on a GPU."""
    parts = []
    for file, run in everything(folder):
        sections = run.get("sections", {}) if isinstance(run, dict) else {}
        found = sections.get("exhausted", {}).get("all", {})
        if "loads" not in found or run.get("toy") or run.get("device") == "cpu":
            continue
        first, frames = next(iter(found["frames"].items()))
        lines = [
            f"`{_command(run, 'exhausted') or file.name}` ([{file.name}]({link(file)})), "
            f"{frames} frames of `{first}`, {found['refused_frames']} refused:\n",
            "| memory runs out | what was said | the first backend answers bit for bit | "
            "still held | with memory back |",
            "|---|---|---|---|---|",
        ]
        for name, load in found["loads"].items():
            cells = (
                f"while `{name}` loads",
                _said(load["error"]),
                "yes" if load["bit_equal"] else "no",
                _held(load["still_held_mb"]),
                _said(found["loads_afterwards"].get(name, "")),
            )
            lines.append("| " + " | ".join(cells) + " |")
        frame = found["frame"]
        again = "yes" if frame["bit_equal_with_memory_back"] else "no"
        lines.append(f"| under a frame | {_said(frame['error'])} | {again} | | |")
        parts.append("\n".join([*lines, *(f"- {fault}" for fault in found["faults"])]) + "\n")
    return "\n".join(parts) or NOTHING


def _command(run: Row, section: str) -> str:
    """Of the run that a section is from, where a file holds those of several."""
    runs = (of["command"] for of in run.get("runs", ()) if section in of["sections"])
    return str(next(runs, run.get("command", "")))


def _held(mb: Row) -> str:
    return ", ".join(
        f"{kind.removeprefix('gpu_').removesuffix('_mb')} {held:.1f} MB"
        for kind, held in mb.items()
    )


def _said(text: str, longest: int = 90) -> str:
    short = text.replace("|", "/").replace("\n", " ")
    return short if len(short) <= longest else short[:longest] + "…"


def soaks(folder: Path = RESULTS) -> str:
    """Every stored run of `thor-policy soak`."""
    parts = []
    for file, run in everything(folder):
        if isinstance(run, dict) and "changing" in run and "success" in run:
            parts.append(_soak(file, run))
    return "\n".join(parts) or NOTHING


def _soak(file: Path, run: Row) -> str:
    changes, motion, changing = run["changes"], run["motion"], run["changing"]
    limits = motion["limits"]
    settings, watchdog, trips = run["settings"], run["watchdog"], run["interventions"]
    rows = [
        ("changes", f"{changes['made']} made in {changing['seconds'] / 60:.1f} min, "
                    f"{changes['refused_as_they_must']} refused as they must be, "
                    f"{len(changes['surprises'])} answered otherwise than expected"),
        ("backends", f"{len(changing['chunks'])}; {sum(changing['chunks'].values())} chunks, "
                     f"{run['unverified_chunks']} of an engine that was not verified; from the set "
                     f"call to its first chunk p50 {run['switch_s']['p50']:.2f} s, most "
                     f"{run['switch_s']['max']:.2f} s"),
        *((f"success, {name}", _success(run["success"][part]))
          for part, name in (("quiet", "in quiet minutes"), ("changing", "with changes"))),
        ("frames beyond the deadline", f"{changing['late_frames']} of {changing['frames']}"),
        ("watchdogs", f"heartbeat missed {trips.get('heartbeat', 0)} times, robot stopped "
                      f"{trips.get('stop', 0)} times, held {trips.get('hold', 0)} times; with the "
                      f"policy's process stopped at the end, tripped after "
                      f"{watchdog['tripped_after_s']} s"),
        ("commands", f"{motion['commands']}; longest gap {motion['longest_gap_s'] * 1e3:.0f} ms, "
                     f"at a reset between episodes {motion['longest_reset_gap_s'] * 1e3:.0f} ms"),
        ("peaks", f"{motion['peak_velocity']:.3f} rad/s of {limits['velocity']}, "
                  f"{motion['peak_acceleration']:.2f} rad/s² of {limits['acceleration']}"),
        *((f"memory of {name}", _memory(found)) for name, found in run["memory"].items()
          if "growth" in found),
        *((what, text) for what, text in run.get("afterwards", {}).items()),
        ("not good enough", "; ".join(run["faults"]) or "nothing"),
    ]  # fmt: skip
    heading = (
        f"`{run['command']}` ([{file.name}]({link(file)})): {settings['cpu_count']} CPU cores, "
        f"load p50 {run['load_average']['p50']:.1f}, most {run['load_average']['max']:.1f}"
        + (f"; {run['note']}" if run["note"] else "") + "."
    )  # fmt: skip
    lines = [heading, "", "| what | figure |", "|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {figure} |" for what, figure in rows)]) + "\n"


def _success(part: Row) -> str:
    low, high = part["wilson_95"]
    return f"{part['solved']} of {part['episodes']} episodes (Wilson 95 %: {low:.1%} to {high:.1%})"


def _memory(found: Row) -> str:
    return (
        f"{found['first_fifth_mb']} to {found['last_fifth_mb']} MB after warming up "
        f"({found['growth']:+.1%}), {found['slope_mb_per_hour']:+.1f} MB an hour"
    )
