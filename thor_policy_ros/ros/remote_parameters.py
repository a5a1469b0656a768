"""Where a policy of backend `openpi_remote` is served: the policy node's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from thor_policy_ros.ros.parameters import ParameterRow

REMOTE_SERVER = (
    ParameterRow(
        "openpi_remote_host",
        "string",
        "127.0.0.1",
        "Server of openpi's policy protocol that backend openpi_remote asks: name or address",
    ),
    ParameterRow(
        "openpi_remote_port",
        "int",
        8000,
        "Its port",
        bounds=(1, 65535),
    ),
    ParameterRow(
        "openpi_remote_timeout",
        "double",
        1.0,
        "Without an answer after this time there is no chunk, and the connection is made anew",
        "s",
        bounds=(0.01, 60.0),
    ),
    ParameterRow(
        "openpi_remote_token_file",
        "string",
        "",
        "File whose first line is the server's token (openpi's api_key); empty: none",
    ),
    ParameterRow(
        "openpi_remote_keys",
        "string",
        "",
        "Named config whose observation names the server has; empty: the policy's own",
    ),
)


class Values(Protocol):
    """Parameters by name."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class RemoteServer:
    """The parameters above. token_file, keys: '' for none."""

    host: str = "127.0.0.1"
    port: int = 8000
    timeout_s: float = 1.0
    token_file: str = ""
    keys: str = ""

    @staticmethod
    def of(values: Values) -> RemoteServer:
        return RemoteServer(
            host=values["openpi_remote_host"],
            port=values["openpi_remote_port"],
            timeout_s=values["openpi_remote_timeout"],
            token_file=values["openpi_remote_token_file"],
            keys=values["openpi_remote_keys"],
        )

    def token(self) -> str:
        """OSError or ValueError for a file that is named and holds none."""
        if not self.token_file:
            return ""
        lines = Path(self.token_file).read_text().splitlines()
        if not lines or not lines[0].strip():
            raise ValueError(f"openpi_remote_token_file {self.token_file} holds no token")
        return lines[0].strip()
