"""The sidecar's JSON API, metrics and health endpoints. Owns routes and status codes; pages are in `web.front`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from otelbill_collector.domain.instants import parse_instant
from otelbill_collector.ledger.rollups import UnknownDimension, UsageQuery
from otelbill_collector.web.front import FRONT_QUERY, FrontPage, render_front

Json = Any  # whatever the read models give; it is only serialised here
_BODY_BYTES_MAX = 1 << 20
INSTANCE_HEADER = "otelbill-instance"


class BadQuery(ValueError):
    """A query or body that cannot be answered; the message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class ApiHandlers:
    """What the API calls. Each is synchronous and runs in a worker thread."""

    is_ready: Callable[[], bool]
    render_metrics: Callable[[], bytes]
    is_authorised: Callable[[str | None], bool]
    load_usage: Callable[[UsageQuery], Json]
    explain: Callable[[str], Json]
    list_dead_letters: Callable[[], Json]
    list_held: Callable[[], Json]
    list_suspense: Callable[[], Json]
    stripe_status: Callable[[], Json]
    show_progress: Callable[[], Json]
    operate: Mapping[str, Callable[[dict[str, Any]], Json]]
    not_found: tuple[type[Exception], ...]
    refused: tuple[type[Exception], ...]
    instance: str = ""  # which start of a sidecar answers; shown by /healthz


class _BodyTooLarge(Exception):
    """A command's body is larger than any command needs."""


def build_api(handlers: ApiHandlers, *, hosts: Sequence[str] = ("*",)) -> Starlette:
    """The ASGI application of the API port. Requests for another name than one of `hosts` are refused.

    Without that, a page whose name was made to point at the loopback address could read usage and post operations.
    """
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=_list_routes(_Api(handlers)), middleware=[guard])


def _list_routes(api: _Api) -> list[Route]:
    return [
        Route("/", api.show_front),
        Route("/healthz", api.show_health),
        Route("/readyz", api.show_readiness),
        Route("/metrics", api.show_metrics),
        Route("/v1/usage", api.show_usage),
        Route("/v1/explain/{identifier:path}", api.show_explanation),
        Route("/v1/dead-letters", api.show_dead_letters),
        Route("/v1/held", api.show_held),
        Route("/v1/suspense", api.show_suspense),
        Route("/v1/stripe/status", api.show_stripe_status),
        Route("/v1/progress", api.show_progress),
        Route("/v1/operations/{name}", api.operate, methods=["POST"]),
    ]


class _Api:
    def __init__(self, handlers: ApiHandlers) -> None:
        self._handlers = handlers

    async def show_health(self, _: Request) -> Response:
        return PlainTextResponse("ok\n", headers={INSTANCE_HEADER: self._handlers.instance})

    async def show_readiness(self, _: Request) -> Response:
        ready = self._handlers.is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", status_code=200 if ready else 503)

    async def show_metrics(self, _: Request) -> Response:
        body = await asyncio.to_thread(self._handlers.render_metrics)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def show_usage(self, request: Request) -> Response:
        return await self._answer(request, lambda: self._handlers.load_usage(parse_usage_query(request.query_params)))

    async def show_explanation(self, request: Request) -> Response:
        return await self._answer(request, lambda: self._handlers.explain(request.path_params["identifier"]))

    async def show_dead_letters(self, request: Request) -> Response:
        return await self._answer(request, self._handlers.list_dead_letters)

    async def show_held(self, request: Request) -> Response:
        return await self._answer(request, self._handlers.list_held)

    async def show_suspense(self, request: Request) -> Response:
        return await self._answer(request, self._handlers.list_suspense)

    async def show_stripe_status(self, request: Request) -> Response:
        return await self._answer(request, self._handlers.stripe_status)

    async def show_progress(self, request: Request) -> Response:
        return await self._answer(request, self._handlers.show_progress)

    async def operate(self, request: Request) -> Response:
        """Operator commands. JSON only, so that a page of another origin cannot post here without being asked."""
        if not self._handlers.is_authorised(request.headers.get("authorization")):
            return _render_unauthorised()
        name = request.path_params["name"]
        operation = self._handlers.operate.get(name)
        if operation is None:
            return _render_error(404, f"there is no operation {name[:64]!r}")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _render_error(415, "send a JSON object with Content-Type: application/json")
        try:
            arguments = orjson.loads(await _read_body(request) or b"{}")
        except _BodyTooLarge:
            return _render_error(413, f"the body is larger than {_BODY_BYTES_MAX} bytes")
        except orjson.JSONDecodeError as error:
            return _render_error(400, f"the body is not JSON: {error}")
        if not isinstance(arguments, dict):
            return _render_error(400, "the body is not a JSON object")
        return await self._answer(request, lambda: operation(arguments))

    async def show_front(self, request: Request) -> Response:
        if not self._handlers.is_authorised(request.headers.get("authorization")):
            return _render_unauthorised()
        return HTMLResponse(await asyncio.to_thread(self._render_front))

    def _render_front(self) -> str:
        handlers = self._handlers
        return render_front(
            FrontPage(
                usage=handlers.load_usage(FRONT_QUERY),
                dead_letters=len(handlers.list_dead_letters()),
                stripe=handlers.stripe_status(),
            )
        )

    async def _answer(self, request: Request, work: Callable[[], Json]) -> Response:
        handlers = self._handlers
        if not handlers.is_authorised(request.headers.get("authorization")):
            return _render_unauthorised()
        try:
            return Response(_render_json(await asyncio.to_thread(work)), media_type="application/json")
        except (BadQuery, UnknownDimension) as error:
            return _render_error(400, str(error))
        except handlers.not_found as error:
            return _render_error(404, str(error))
        except handlers.refused as error:
            return _render_error(409, str(error))


def parse_usage_query(values: Mapping[str, str]) -> UsageQuery:
    """by=customer,model&from=2026-11-01&to=...; anything else is a filter by that dimension. Raises BadQuery."""
    by = tuple(part for part in values.get("by", "customer").split(",") if part)
    where = {name: value for name, value in values.items() if name not in ("by", "from", "to")}
    return UsageQuery(by, _parse_bound(values, "from"), _parse_bound(values, "to"), where)


def _parse_bound(values: Mapping[str, str], name: str) -> int | None:
    if not values.get(name):
        return None
    try:
        return parse_instant(values[name])
    except ValueError as error:
        raise BadQuery(f"{name}: {error}") from error


async def _read_body(request: Request) -> bytes:
    """The body of a command. Raises _BodyTooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES_MAX:
            raise _BodyTooLarge
    return bytes(body)


def _render_json(value: Json) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # sums are exact, and may be beyond the 64 bits that orjson writes
        return json.dumps(value).encode()


def _render_unauthorised() -> Response:
    return _render_error(401, "send one of the configured tokens as Authorization: Bearer TOKEN")


def _render_error(status: int, message: str) -> Response:
    return Response(orjson.dumps({"error": message}), status_code=status, media_type="application/json")
