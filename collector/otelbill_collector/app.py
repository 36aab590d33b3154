"""The sidecar put together: the only place that constructs adapters from a configuration. Owns start and shutdown."""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from otelbill_collector.announcement import announce, withdraw
from otelbill_collector.audit import build_metering, find_damage
from otelbill_collector.billing import Billing
from otelbill_collector.column_rules import build_column_rules
from otelbill_collector.commands import build_operate
from otelbill_collector.config import Config
from otelbill_collector.crediting import create_terms
from otelbill_collector.decode.scanner import Scanner
from otelbill_collector.decode.select import select_span
from otelbill_collector.domain.instants import NANOS
from otelbill_collector.domain.provider_prices import PriceBook
from otelbill_collector.domain.rating import Rater
from otelbill_collector.domain.records import DeadLetter, Receipt
from otelbill_collector.domain.retention import EvidencePruned
from otelbill_collector.explanation import NothingFound, explain_identifier, render_letter, render_record
from otelbill_collector.export.metrics import Levels, SidecarMetrics
from otelbill_collector.export.otlp import ForwardSettings, OtlpForwarder
from otelbill_collector.export.stripe.client import StripePackageMissing, open_account
from otelbill_collector.export.stripe.exporter import StripeExporter
from otelbill_collector.export.stripe.pace import Pacer
from otelbill_collector.export.stripe.ports import StripeProblem
from otelbill_collector.export.stripe.reconcile import StripeReconciler
from otelbill_collector.export.stripe.settings import MeteringMode, StripeSettings
from otelbill_collector.free_memory import MemoryKeeper
from otelbill_collector.ingest import GroupCommitter, Pipeline
from otelbill_collector.isolation import Isolator
from otelbill_collector.jobs import Housekeeper, Job
from otelbill_collector.ledger.booking import Alone
from otelbill_collector.ledger.books import Books, UnknownEvent
from otelbill_collector.ledger.compaction import Compactor
from otelbill_collector.ledger.credits import UnknownGrant
from otelbill_collector.ledger.deadletters import count_dead_letters, list_dead_letters
from otelbill_collector.ledger.groups import GroupLimits
from otelbill_collector.ledger.lineage import list_suspense, list_unsettled
from otelbill_collector.ledger.outbox_views import count_states, find_oldest_waiting
from otelbill_collector.ledger.resolutions import NotHeld
from otelbill_collector.ledger.rollups import count_events, load_usage
from otelbill_collector.ledger.sqlite import LedgerUnavailable, SqliteStore, count_free_bytes
from otelbill_collector.listeners import (
    CannotStart,
    QuietServer,
    bind_grpc,
    bind_sockets,
    list_api_hosts,
    raise_open_files,
)
from otelbill_collector.native.loading import find_library
from otelbill_collector.operations import NoStripe, Operations, OtherPrices, StripeDesk, render_status
from otelbill_collector.pipeline import Batch, Carried, Limits, Request, Stages, book_batch, read_batch
from otelbill_collector.receive.admission import Admission, ReceiveLimits
from otelbill_collector.receive.connections import BoundedProtocol, ConnectionBook
from otelbill_collector.receive.direct import DirectListener
from otelbill_collector.receive.grpc import OtlpGrpc, build_server
from otelbill_collector.receive.http import OtlpHttp
from otelbill_collector.retention import RETENTION_ERRORS, RetentionDesk, StripeTooEarly, adopt_stripe
from otelbill_collector.rules import RuleSet, claim_keys
from otelbill_collector.web.api import ApiHandlers, build_api

_log = logging.getLogger("otelbill")

_BATCH_BYTES_MAX = 8 * 1024 * 1024
_JOBS_SECONDS = 1.0
_GRPC_STOP_SECONDS = 5.0
# Spans and records are acyclic, and by the ten thousand alive: looking for cycles among them took a third of the CPU.
_GC_THRESHOLDS = (200_000, 20, 100)
# Who wants the interpreter back from a thread that computes waits so long, and ingest wants it back often in a commit.
# With the usual five milliseconds it was a median of 5.2 each time, with this 0.7.
_SWITCH_SECONDS = 0.0005
_FOLD_REST = 4  # so that folding takes a fifth of a core at most, and what is behind is folded at once


def read_clock() -> int:
    """Nanoseconds UTC."""
    return time.time_ns()


def build_rater(config: Config) -> Rater:
    """Rating under a configuration."""
    return Rater(config.rate_card, PriceBook(overrides=config.provider_prices), config.list_members())


def build_rules(config: Config) -> RuleSet:
    """Claims and rating under a configuration."""
    claims = config.claims
    return RuleSet(build_rater(config), grace_seconds=claims.grace_seconds, accept_estimates=claims.accept_estimates)


def build_stages(config: Config, store: SqliteStore) -> Stages:
    """The pipeline over an open ledger."""
    rules = build_rules(config)
    limits = Limits(
        spans_max=config.limits.spans_per_request,
        attributes_max=config.limits.attributes_per_span,
        future_nanos=config.limits.future_seconds * NANOS,
    )
    memory = GroupLimits(config.limits.group_keys, config.limits.known_keys)
    books = Books(
        store,
        claim_keys=claim_keys,
        decide=rules.decide,
        rate=rules.rate,
        alone=Alone(rules.stands_alone, rules.rate_alone),
        columns=build_column_rules(rules),
        limits=memory,
    )
    return Stages(select_span, books, limits)


def build_desk(config: Config, store: SqliteStore) -> StripeDesk | None:
    """What acts on the configured account; None where there is none. Raises StripePackageMissing, StripeTooEarly."""
    if config.stripe is None:
        return None
    adopt_stripe(store, config)
    stripe = config.stripe
    settings = StripeSettings(
        api_key=stripe.api_key,
        api_base=stripe.api_base,
        meter_api_base=stripe.api_base,
        mode=MeteringMode(stripe.mode),
        event_name=stripe.event_name,
        meters=stripe.meters,
        currency=config.rate_card.currency.lower(),
        window_nanos=stripe.window_nanos,
        grace_nanos=stripe.grace_nanos,
        customers={name: item.stripe for name, item in config.customers.items() if item.stripe is not None},
        rate_per_second=stripe.rate_per_second,
    )
    metering = build_metering(config)
    assert metering is not None
    account = open_account(settings)
    pacers = [
        Pacer(settings.rate, read_nanos=time.monotonic_ns, pause=lambda nanos: time.sleep(nanos / NANOS))
        for _ in range(2)
    ]
    exporter = StripeExporter(store, account, settings, pacers[0])
    return StripeDesk(settings, metering, account, exporter, StripeReconciler(store, account, settings, pacers[1]))


@contextmanager
def open_operations(config: Config) -> Iterator[Operations]:
    """Operator commands on a ledger that no sidecar holds. Raises LedgerUnavailable."""
    store = SqliteStore(config.data_dir)
    try:
        desk = build_desk(config, store)
        try:
            billing, terms = Billing(store, config, read_clock), create_terms(config.rate_card)
            stages = build_stages(config, store)
            keep = RetentionDesk(stages.books, config, read_clock)
            yield Operations(stages, desk, read_clock, build_rater(config), billing, terms, keep)
        finally:
            if desk is not None:
                desk.exporter.close()
    finally:
        store.close()


class Sidecar:
    """Receivers, writer, jobs, forwarder and API of one process."""

    def __init__(self, config: Config, *, clock: Callable[[], int] = read_clock) -> None:
        self._config = config
        self._clock = clock
        self._instance = secrets.token_hex(8)  # of this start: tells it from whoever has its port later
        self._ready = threading.Event()
        raise_open_files(config.limits.connections)
        self._sockets, problems = bind_sockets((config.listen.http, config.listen.api, config.listen.grpc))
        if len(self._sockets) == 3:
            self._sockets.pop().close()  # gRPC binds by itself; this only finds out whether it can
        if not problems:
            try:
                self._store = SqliteStore(config.data_dir)
            except LedgerUnavailable as error:
                problems.append(str(error))
            else:
                withdraw(config.data_dir)  # what a killed sidecar left; this one is announced when it answers
                problems.extend(find_damage(self._store))
                if problems:
                    self._store.close()
        if problems:
            self._close_sockets()
            raise CannotStart(problems)
        try:
            self._wire()
        except BaseException:
            self._close_sockets()
            self._store.close()
            raise

    def _close_sockets(self) -> None:
        for item in self._sockets:
            item.close()

    def _wire(self) -> None:
        memory = MemoryKeeper()  # first, for what all the rest allocates
        config = self._config
        self._stages = build_stages(config, self._store)
        self._reader_stages = replace(self._stages, scanner=Scanner() if find_library() else None)
        try:
            desk = build_desk(config, self._store)
        except (StripePackageMissing, StripeTooEarly) as error:
            raise CannotStart([str(error)]) from error
        self._desk = desk
        self._retention = RetentionDesk(self._stages.books, config, self._clock)
        billing, terms = Billing(self._store, config, self._clock), create_terms(config.rate_card)
        self._operations = Operations(
            self._stages, desk, self._clock, build_rater(config), billing, terms, self._retention
        )
        self._metrics = SidecarMetrics(self._load_levels)
        limits = config.limits
        sizes = limits.body_bytes, limits.decompressed_bytes, limits.inflight_bytes
        bounds = ReceiveLimits(*sizes, waiting_calls_max=limits.waiting_calls)
        self._admission = Admission(bounds, config.tokens, self._metrics.count_refusal)
        self._grpc = OtlpGrpc(self._submit, self._admission, self._metrics.count_request)
        self._books = [ConnectionBook(limits.connections, self._metrics.count_refusal) for _ in range(2)]
        self._forwarder = self._build_forwarder()
        self._committer = GroupCommitter(
            Pipeline(lambda requests: read_batch(requests, self._reader_stages), self._book, self._carry),
            observe=self._observe,
            isolate=Isolator(self._carry, self._keep_letters).isolate,
            batch_bytes_max=_BATCH_BYTES_MAX,
            linger_seconds=limits.commit_linger_ms / 1_000,
        )
        operations = self._operations
        jobs = [
            Job("prices", lambda _: self._price_waiting()),
            Job("claims", lambda _: operations.decide_due()),
            Job("fold", lambda _: operations.fold(), rest_factor=_FOLD_REST),
            Job("credits", lambda _: operations.credits.post_regularly()),
            Job("stripe", lambda _: operations.send_due()),
        ]
        self._prices_are_new = True  # the rate card changes with a restart only
        self._housekeeper = Housekeeper(jobs, clock=self._clock, interval_seconds=_JOBS_SECONDS)
        # By itself: writing files takes seconds, and what is due to Stripe must not wait for it.
        self._compactor = Compactor(self._store)
        self._file_keeper = Housekeeper(
            [Job("compact", self._compactor.run), Job("retention", self._retention.run)],
            clock=self._clock,
            interval_seconds=_JOBS_SECONDS,
            name="otelbill-files",
        )
        # By itself too: under load a merge is due every second, and looking up a late span takes longer without.
        beside = [Job("claim runs", lambda _: self._stages.books.order_claims()), Job("memory", memory.run)]
        self._run_keeper = Housekeeper(beside, clock=self._clock, interval_seconds=_JOBS_SECONDS, name="otelbill-runs")

    def _price_waiting(self) -> None:
        if self._prices_are_new:
            priced = self._operations.price_waiting()
            self._prices_are_new = False
            if priced:
                _log.info("%d events that waited for a price are rated now", priced)

    def _build_forwarder(self) -> OtlpForwarder | None:
        forward = self._config.forward
        if forward is None:
            return None
        settings = ForwardSettings(forward.endpoint, forward.headers, forward.cost_names, forward.queue_spans)
        return OtlpForwarder(settings, lambda result, spans: self._metrics.forwarded.labels(result).inc(spans))

    async def serve(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run until SIGTERM or SIGINT, then drain: everything received is committed before this returns.

        However it ends, threads, ports and ledger are given back.
        """
        self._committer.start()
        self._housekeeper.start()
        self._file_keeper.start()
        self._run_keeper.start()
        if self._forwarder is not None:
            self._forwarder.start()
        try:
            await self._listen(on_ready)
        finally:
            await asyncio.to_thread(self._shut_down)

    async def _listen(self, on_ready: Callable[[], None]) -> None:
        config = self._config
        server = build_server(
            self._grpc, message_bytes_max=config.limits.body_bytes, connections_max=config.limits.connections
        )
        bind_grpc(server, config.listen.grpc)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        door = OtlpHttp(self._submit, self._admission, self._metrics.count_request)
        http = QuietServer(door, DirectListener(self._books[0], door))
        pages = build_api(self._build_handlers(), hosts=list_api_hosts(config))
        api = QuietServer(pages, partial(BoundedProtocol, self._books[1]))
        await server.start()
        tasks = [asyncio.create_task(item.serve(sockets=[bound])) for item, bound in zip((http, api), self._sockets,
                                                                                         strict=True)]  # fmt: skip
        try:
            while not (http.started and api.started) and not any(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            if any(task.done() for task in tasks):
                raise CannotStart(["a listener ended while it started; the log says why"])
            announce(config.data_dir, str(config.listen.api), self._instance)
            self._ready.set()
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            sys.setswitchinterval(_SWITCH_SECONDS)
            on_ready()
            await stop.wait()
        finally:
            self._ready.clear()
            http.should_exit = api.should_exit = True
            await server.stop(_GRPC_STOP_SECONDS)
            await asyncio.gather(*tasks)

    def _shut_down(self) -> None:
        self._close_sockets()
        self._committer.stop()
        self._compactor.stop()
        self._file_keeper.stop()
        self._run_keeper.stop()
        self._housekeeper.stop()
        self._housekeeper.run_once()
        if self._forwarder is not None:
            self._forwarder.stop()
        if self._desk is not None:
            self._desk.exporter.close()
        withdraw(self._config.data_dir)
        self._store.close()

    def _submit(self, body: bytes) -> Any:
        """Any: Future[Answer], named so by the receivers."""
        return self._committer.submit(Request(body, self._clock()))

    def _book(self, batch: Batch) -> Carried:
        with self._metrics.commit_seconds.time():
            return book_batch(batch, self._stages, self._clock())

    def _carry(self, requests: Sequence[Request]) -> Carried:
        return self._book(read_batch(requests, self._stages))

    def _keep_letters(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        return self._stages.books.post((), letters, self._clock()).kept

    def _observe(self, requests: Sequence[Request], carried: Carried) -> None:
        self._metrics.count_answers(carried.answers)
        if carried.posted is not None:
            self._metrics.count_booking(carried.posted.booking)
        if self._forwarder is not None:
            for request, answer, members in zip(requests, carried.answers, carried.list_members(), strict=True):
                if not isinstance(answer, Receipt):
                    continue  # not taken: its sender will send it in another form, or never
                booked = {
                    (member.candidate.trace_id, member.candidate.span_id): member.booked
                    for member in members
                    if member.booked is not None
                }
                self._forwarder.offer(request.body, booked)

    def _load_levels(self) -> Levels:
        return self._store.read(self._read_levels)

    def _read_levels(self, connection: sqlite3.Connection) -> Levels:
        oldest = find_oldest_waiting(connection)
        return Levels(
            inflight_bytes=self._admission.inflight_bytes,
            inflight_bytes_max=self._config.limits.inflight_bytes,
            connections=self._books[0].size,
            connections_max=self._config.limits.connections,
            waiting_calls=self._grpc.turns.waiting,
            waiting_calls_max=self._config.limits.waiting_calls,
            dead_letters=count_dead_letters(connection),
            ledger_bytes=self._store.size_bytes(),
            ledger_free_bytes=count_free_bytes(connection),
            forward_queue_spans=0 if self._forwarder is None else self._forwarder.waiting_spans,
            group_keys=self._stages.books.group_keys,
            known_keys=self._stages.books.known_keys,
            stripe_intents={state.value: count for state, count in count_states(connection).items()},
            stripe_oldest_pending_seconds=0.0 if oldest is None else max(0, self._clock() - oldest) / NANOS,
            events=count_events(connection),
        )

    def _build_handlers(self) -> ApiHandlers:
        operations, store = self._operations, self._store

        def read(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            return store.read(lambda connection: work(connection, *arguments, **named))

        return ApiHandlers(
            instance=self._instance,
            is_ready=self._ready.is_set,
            render_metrics=self._metrics.render,
            is_authorised=self._admission.is_authorised,
            load_usage=lambda query: read(load_usage, query),
            explain=partial(read, explain_identifier),
            list_dead_letters=lambda: [render_letter(letter) for letter in read(list_dead_letters)],
            list_held=lambda: [render_record(record) for record in read(list_unsettled)],
            list_suspense=lambda: [render_record(record) for record in read(list_suspense)],
            stripe_status=lambda: read(render_status),
            show_progress=lambda: {"rerate": operations.progress},
            operate=build_operate(operations),
            not_found=(NothingFound, UnknownEvent, UnknownGrant),
            refused=(NoStripe, OtherPrices, StripeProblem, NotHeld, EvidencePruned, *RETENTION_ERRORS),
        )
