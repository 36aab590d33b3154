"""The real sidecar as a child process, and its API. Owns how it is started and asked, not what the answers mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from otelbill_collector.testing.demo.programs import Program, ProgramFailed, find_free_ports, start_python

_READY_SECONDS = 40.0
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one sidecar."""

    grpc: int
    http: int
    api: int


def find_ports() -> Ports:
    """Free ports, so that a sidecar on the default ones is not disturbed."""
    return Ports(*find_free_ports(3))


class SidecarProcess:
    """A running sidecar; `with SidecarProcess(config, ports, folder) as sidecar` waits until it is ready."""

    def __init__(self, config: Path, ports: Ports, folder: Path) -> None:
        """`folder` gets the ledger and the log."""
        self._ports = ports
        arguments = ["-m", "otelbill_collector.cli", "collector", "--config", str(config), "--data-dir", str(folder)]
        self._program: Program = start_python(arguments, log=folder / "sidecar.log", given={})
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{ports.api}", timeout=_ANSWER_SECONDS, trust_env=False)

    @property
    def endpoint(self) -> str:
        """What OTELBILL_ENDPOINT takes."""
        return f"http://127.0.0.1:{self._ports.http}"

    def __enter__(self) -> SidecarProcess:
        self._program.__enter__()
        try:
            self._program.await_ready(self._is_ready, _READY_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._program.stop()

    def fetch(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """The JSON answer of the API; Any, as each path has its own. Raises ProgramFailed."""
        return self._ask("GET", path, params=dict(parameters or {}))

    def operate(self, name: str) -> Any:
        """Run an operator command in the sidecar; Any, as each has its own answer. Raises ProgramFailed."""
        return self._ask("POST", f"/v1/operations/{name}", json={})

    def _is_ready(self) -> bool:
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = self._client.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ProgramFailed(f"the sidecar does not answer {method} {path}: {error!r}") from error
        if answer.status_code != 200:
            raise ProgramFailed(f"the sidecar answers {method} {path} with {answer.status_code}: {answer.text[:500]}")
        return answer.json()
