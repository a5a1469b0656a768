"""A command prefix: the same machine seen by `nobody`, every file system read-only.

In a mount namespace of its own, which ends with the process. Where the interpreter, this checkout
or the test's files lie in a folder that nobody may enter (as /root), they are bound to the same
path in an empty one.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NOBODY = 65534
UNSHARE = ("unshare", "--mount", "--propagation", "private")
DROP = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs",
)  # fmt: skip
CHECKOUT = Path(__file__).resolve().parents[2]
# A mount that cannot be made read-only (the kernel's own) is told apart by the check below.
READ_ONLY = r"""
while read -r _ place _; do
  case "$place" in /proc|/proc/*|/sys|/sys/*|/dev|/dev/*|$writable) ;;
  *) mount -o remount,bind,ro "$place" 2>/dev/null || true;; esac
done < /proc/self/mounts
for place in $checked; do
  if touch "$place/.written" 2>/dev/null; then echo "$place can be written to"; exit 90; fi
done
"""


def refusal() -> str:
    """Why this cannot be done here, or ''."""
    missing = [tool for tool in ("unshare", "setpriv", "mount") if shutil.which(tool) is None]
    if missing:
        return f"wants {', '.join(missing)}: apt install util-linux mount"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-c", 'mount -t tmpfs none /tmp && exec "$@"', "sh", *DROP, "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"mount namespaces are not permitted (root may): {tried.stderr.strip()}" * bool(
        tried.returncode
    )


def as_nobody(needed: Sequence[Path], temporary: bool) -> tuple[str, ...]:
    """The prefix. needed: folders to be read beside the interpreter and this checkout.

    temporary: whether /tmp, which is empty but for what is needed, may be written to. Exits with
    status 90 where root could write to any of these folders, or to /tmp against `temporary`.
    """
    places = [Path(p).resolve() for p in (sys.base_prefix, sys.prefix, CHECKOUT, *needed)]
    closed = {top for place in places if (top := _closed(place)) is not None} | {Path("/tmp")}
    covered = {top for top in closed if not closed & set(top.parents)}
    bound = [p for p in places if any(p.is_relative_to(top) for top in covered)]
    lines = ["set -e", "mount -t tmpfs -o mode=755 none /mnt"]
    for number, place in enumerate(bound):
        lines += [f"mkdir /mnt/{number}", f"mount --rbind {_quoted(place)} /mnt/{number}"]
    for top in sorted(covered):
        mode = "1777" if top == Path("/tmp") else "755"
        lines.append(f"mount -t tmpfs -o mode={mode} none {_quoted(top)}")
    for number, place in enumerate(bound):
        lines += [f"mkdir -p {_quoted(place)}", f"mount --rbind /mnt/{number} {_quoted(place)}"]
    lines += ["umount -l /mnt", "mount -t tmpfs -o mode=755 none /dev/shm"]
    checked = [*places, Path("/"), *([] if temporary else [Path("/tmp")])]
    lines.append(f"writable={'/tmp' if temporary else '/dev/null'}")
    lines.append(f"checked={shlex.quote(' '.join(map(str, checked)))}")
    script = "\n".join([*lines, READ_ONLY, 'exec "$@"'])
    return (*UNSHARE, "sh", "-c", script, "sh", *DROP)


def _closed(place: Path) -> Path | None:
    """The first folder on the way that others may not enter."""
    way = [*reversed(place.parents), place]
    return next((folder for folder in way if not folder.stat().st_mode & 0o001), None)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
