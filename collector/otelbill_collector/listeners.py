"""Ports and servers of the sidecar, bound before anything else starts: all that is in the way is told at once."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import grpc
import uvicorn

from otelbill_collector.config import Address, Config

_OTHER_FILES = 512  # ledger, log, modules, Stripe, forwarding


class CannotStart(RuntimeError):
    """The sidecar refuses to start. `problems` lists everything that is in the way, each with its remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the sidecar; `make_protocol` makes each connection's, in a book."""

    def __init__(self, application: Any, make_protocol: Callable[..., asyncio.BaseProtocol]) -> None:
        config = uvicorn.Config(
            application,
            http=cast(Any, make_protocol),  # uvicorn only calls it
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
            server_header=False,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loops, which take a sixth off what receiving costs; None where there is no uvloop."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def list_api_hosts(config: Config) -> tuple[str, ...]:
    """Names under which the API answers: its own where it listens on loopback without tokens, any name otherwise."""
    host = config.listen.api.host
    if config.tokens or host not in ("127.0.0.1", "localhost"):
        return ("*",)
    return ("127.0.0.1", "localhost")


def bind_sockets(addresses: Sequence[Address]) -> tuple[list[socket.socket], list[str]]:
    """(listening sockets, what is in the way of the others)."""
    bound, problems = [], []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        item = socket.socket(family, socket.SOCK_STREAM)
        item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            item.bind((address.host, address.port))
            item.listen(512)
        except OSError as error:
            item.close()
            problems.append(_describe_port(address, error.strerror or str(error)))
        else:
            item.setblocking(False)
            bound.append(item)
    return bound, problems


def bind_grpc(server: grpc.aio.Server, address: Address) -> None:
    """Give the gRPC server its port. Raises CannotStart."""
    try:
        server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise CannotStart([_describe_port(address, "address in use or not permitted")]) from error


def raise_open_files(connections_max: int) -> None:
    """Let this process open as many files as its connections may need, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * connections_max + _OTHER_FILES  # two HTTP listeners and gRPC
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def _describe_port(address: Address, why: str) -> str:
    return f"cannot listen on {address}: {why}; stop the other program or set `listen` in otelbill.yaml"
