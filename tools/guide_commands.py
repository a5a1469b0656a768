"""The command-line reference, from each command's own argument parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from thor_policy_ros.evaluation.cli import COMMANDS, Command, command_parser

ROOT = Path(__file__).resolve().parents[1]
USAGE_COLUMNS = 88


def commands() -> str:
    """A section for every row of the command line's table."""
    return "\n".join(_section(command) for command in COMMANDS)


def _section(command: Command) -> str:
    parser = command_parser(command)
    parts = [f"## {parser.prog}\n\n*{_sentence(command.help)}*\n", _body(parser)]
    for inner in inner_parsers(parser):
        parts.append(f"### {inner.prog}\n\n{_body(inner)}")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def inner_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a command's own commands, such as `bench latency`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _body(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = partial(argparse.HelpFormatter, width=USAGE_COLUMNS)
    usage = parser.format_usage().removeprefix("usage: ").strip()
    return f"{(parser.description or '').strip()}\n\n```text\n{usage}\n```\n\n{_options(parser)}"


def _options(parser: argparse.ArgumentParser) -> str:
    rows = [_row(parser, action) for action in parser._actions if _is_shown(action)]
    if not rows:
        return ""
    return "\n".join(["| option | what |", "|---|---|", *rows]) + "\n"


def _is_shown(action: argparse.Action) -> bool:
    if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
        return False
    return action.help != argparse.SUPPRESS


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    names = [f"`{name}`" for name in action.option_strings] or [f"`{_value(action)}`"]
    if action.option_strings and action.nargs != 0:
        names[-1] = f"{names[-1][:-1]} {_value(action)}`"
    what = [_help(parser, action)]
    if action.choices:
        what.append("one of " + ", ".join(f"`{choice}`" for choice in action.choices))
    if _has_default(action) and "default" not in what[0]:
        what.append(f"default `{_plain(action.default)}`")
    if action.required and action.option_strings:
        what.append("required")
    text = "; ".join(part for part in what if part).replace("|", "\\|")
    return f"| {', '.join(names)} | {text} |"


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "VALUE" if action.choices else action.dest.upper()


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    shown = {**vars(action), "prog": parser.prog, "default": _plain(action.default)}
    return (action.help or "") % shown


def _has_default(action: argparse.Action) -> bool:
    return action.nargs != 0 and action.default not in (None, argparse.SUPPRESS, "", (), [])


def _plain(default: Any) -> str:
    """As it would be typed: a path of this checkout from its root."""
    if isinstance(default, Path) and default.is_relative_to(ROOT):
        return str(default.relative_to(ROOT))
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return str(default)
