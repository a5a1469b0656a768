"""What a check of `thor-policy doctor` says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FINE, NOTE, WRONG = "fine", "note", "wrong"


@dataclass(frozen=True)
class Check:
    """One line. level: fine; note, it works but look at it; wrong, something needed is missing.

    do: what to type or change; '' when fine.
    """

    subject: str
    level: str
    says: str
    do: str = ""


def fine(subject: str, says: str) -> Check:
    return Check(subject, FINE, says)


def note(subject: str, says: str, do: str = "") -> Check:
    return Check(subject, NOTE, says, do)


def wrong(subject: str, says: str, do: str) -> Check:
    return Check(subject, WRONG, says, do)


def exit_status(checks: Iterable[Check]) -> int:
    """1 if something needed is wrong, else 0."""
    return int(any(check.level == WRONG for check in checks))
