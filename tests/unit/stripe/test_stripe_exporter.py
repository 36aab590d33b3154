"""The exporter under every kind of answer: nothing lost, nothing doubled, and every halt visible."""

from __future__ import annotations

import pytest

from otelbill_collector.domain.instants import HOUR_NANOS, NANOS
from otelbill_collector.domain.intents import IntentState
from otelbill_collector.export.stripe.answers import Answer, Outcome
from otelbill_collector.export.stripe.pace import Pacer
from otelbill_collector.export.stripe.settings import StripeSettings, StripeSettingsError
from otelbill_collector.ledger import deliveries
from tests.stripe_world import MINUTE, NOON, Killed, MemoryStripe, World


def states(world: World) -> list[IntentState]:
    return [intent.state for intent in world.intents()]


@pytest.mark.parametrize(
    ("fault", "first", "last"),
    [
        ("5xx-before", "unknown", "accepted"),
        ("5xx-after", "unknown", "duplicate"),
        ("reset-before", "unknown", "accepted"),
        ("reset-after", "unknown", "accepted"),
        ("garbage", "unknown", "accepted"),
        ("429", "pending", "accepted"),
        ("409", "pending", "accepted"),
    ],
)
def test_a_failed_attempt_is_repeated_with_the_same_identifier(
    world: World, stripe: MemoryStripe, fault: str, first: str, last: str
) -> None:
    """Whatever an attempt met, and whether Stripe counted it or not, the value arrives exactly once."""
    stripe.set_faults([fault])
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    assert states(world) == [first]
    assert world.exporter.run_once(world.now).sent == 0, "a backoff is waited for"
    world.exporter.run_once(world.now + 2 * MINUTE)
    assert states(world) == [last]
    assert stripe.total("cus_acme") == 1_000_000
    assert len({event.identifier for event in stripe.attempts}) == 1


def test_a_saved_server_error_is_not_replayed_for_ever(world: World, stripe: MemoryStripe) -> None:
    """After a 5xx the Idempotency-Key is renewed, since Stripe would repeat the saved error for a day."""
    stripe.set_faults(["5xx-after"])
    world.book("acme", "1")
    world.exporter.flush(world.now)
    keys = [event.idempotency_key for event in stripe.attempts]
    identifier = stripe.attempts[0].identifier
    assert keys == [identifier, f"{identifier}.1"]


@pytest.mark.parametrize("kill", ["kill-before", "kill-after"])
def test_an_intent_in_flight_at_a_kill_is_sent_again_and_counted_once(
    world: World, stripe: MemoryStripe, kill: str
) -> None:
    """The intent stands on disk before its bytes leave, so a new process finishes what the old one began."""
    stripe.set_faults([kill])
    world.book("acme", "1")
    with pytest.raises(Killed):
        world.exporter.flush(world.now)
    assert states(world) == ["sending"]
    world.restart()
    world.exporter.run_once(world.now + MINUTE)
    assert states(world)[0] in ("accepted", "duplicate")
    assert stripe.total("cus_acme") == 1_000_000


def test_a_duplicate_we_never_sent_is_not_taken_for_a_delivery(world: World, stripe: MemoryStripe) -> None:
    """An identifier that Stripe knows before our first attempt means another ledger: loud, not delivered."""
    taken = Answer(400, error_type="invalid_request_error", message="An event already exists with identifier x.")
    stripe.answer_with = lambda event: taken
    world.book("acme", "1")
    world.exporter.flush(world.now)
    assert states(world) == ["mismatch"]
    assert world.status().lanes[0].refused == 1_000_000


def test_intents_in_doubt_for_23_hours_are_not_sent_again(world: World, stripe: MemoryStripe) -> None:
    """Stripe may have forgotten the identifier by then, so only a comparison of sums may decide."""
    stripe.set_faults(["reset-after"])
    world.book("acme", "1")
    world.book("acme", "1", at=NOON + 5 * MINUTE)
    world.advance(6 * MINUTE)
    world.exporter.run_once(world.now)
    world.advance(23 * HOUR_NANOS)
    world.exporter.run_once(world.now)
    assert states(world) == ["unknown", "accepted"], "later windows of the lane go on"
    assert stripe.total("cus_acme") == 2_000_000


def test_a_missing_meter_stops_only_that_meter_and_resumes_by_itself(world: World, stripe: MemoryStripe) -> None:
    """A configuration fault holds back its intents, visibly, and the same identifiers go out once it is fixed."""
    no_meter = Answer(400, message='No active meter found for event name "otelbill_charge_usd_micro".')
    stripe.answer_with = lambda event: no_meter
    world.book("acme", "1")
    world.book("globex", "1")
    world.now += 10 * MINUTE
    assert world.exporter.run_once(world.now).outcomes == {Outcome.NO_METER: 2}
    assert world.exporter.run_once(world.now + NANOS).sent == 0
    (stop,) = world.status().stops
    assert (stop.scope, stop.code, stop.since_nanos) == ("meter", "no_meter", world.now)
    assert world.exporter.run_once(world.now + MINUTE).sent == 1, "one probe, not every lane"
    stripe.answer_with = lambda event: None
    world.exporter.run_once(world.now + 3 * MINUTE)
    assert states(world) == ["accepted", "accepted"]
    assert world.status().stops == ()


@pytest.mark.parametrize("status", [401, 403])
def test_bad_credentials_stop_all_sending_and_lose_nothing(world: World, stripe: MemoryStripe, status: int) -> None:
    """A wrong or restricted key holds everything back; a restart with a good one sends it."""
    stripe.answer_with = lambda event: Answer(status, message="no")
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    assert world.exporter.run_once(world.now + NANOS).sent == 0
    assert world.status().stops[0].scope == "account"
    stripe.answer_with = lambda event: None
    world.restart(api_key="sk_test_2")
    world.exporter.run_once(world.now + MINUTE)
    assert states(world) == ["accepted"]


def test_customers_nobody_mapped_wait_visibly(world: World, stripe: MemoryStripe) -> None:
    """Usage of an unmapped customer is kept as intents; the mapping is all that is needed to bill it."""
    world.book("initech", "1")
    world.book("cus_direct", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    assert [event.stripe_customer_id for event in stripe.counted] == ["cus_direct"]
    (stop,) = world.status().stops
    assert "no Stripe customer" in stop.message
    assert "initech" in stop.message
    world.restart(customers={"initech": "cus_initech"})
    world.exporter.run_once(world.now)
    assert stripe.total("cus_initech") == 1_000_000
    assert world.status().stops == ()


def test_a_customer_stripe_does_not_know_holds_its_lane_until_the_mapping_is_corrected(
    world: World, stripe: MemoryStripe
) -> None:
    """A wrong mapping stops one lane; the corrected one is used for the very same intents."""
    stripe.answer_with = lambda event: (
        Answer(404, code="resource_missing", message="No such customer: 'cus_acme'")
        if event.stripe_customer_id == "cus_acme"
        else None
    )
    world.book("acme", "1")
    world.book("globex", "1")
    world.exporter.flush(world.now)
    assert stripe.total("cus_globex") == 1_000_000
    world.restart(customers={"acme": "cus_right", "globex": "cus_globex"})
    world.exporter.flush(world.now)
    assert stripe.total("cus_right") == 1_000_000


STOPPING = {
    "account": Answer(401, message="no"),
    "meter": Answer(400, message="No active meter found for event name"),
    "lane": Answer(404, code="resource_missing", message="No such customer"),
}


@pytest.mark.parametrize("scope", STOPPING)
def test_a_flush_tries_again_whatever_is_stopped(world: World, stripe: MemoryStripe, scope: str) -> None:
    """Whoever mended the cause of a stop need neither wait nor restart: a flush sends, and the stop is gone."""
    stripe.answer_with = lambda event: STOPPING[scope]
    world.book("acme", "1")
    world.exporter.flush(world.now)
    assert [stop.scope for stop in world.status().stops] == [scope]
    assert world.exporter.flush(world.now).sent == 1, "one probe; nothing hammers an account that says no"
    stripe.answer_with = lambda event: None
    assert world.exporter.flush(world.now).drained
    assert world.status().stops == ()


@pytest.mark.parametrize(("scope", "wait_max_minutes"), [("account", 5), ("meter", 1), ("lane", 10)])
def test_a_stop_is_probed_ever_more_rarely_and_ends_with_its_cause(
    world: World, stripe: MemoryStripe, scope: str, wait_max_minutes: int
) -> None:
    """A fault mended early is found within seconds, an old one within minutes, by one event each time."""
    stripe.answer_with = lambda event: STOPPING[scope]
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    probes = [second for second in range(5, 3600, 5) if world.exporter.run_once(world.now + second * NANOS).sent]
    waits = [later - earlier for earlier, later in zip([0, *probes], probes, strict=False)]
    assert waits[:3] == [15, 15, 30]
    assert max(waits) == wait_max_minutes * 60
    assert world.status().stops[0].since_nanos == world.now, "it tells since when"
    stripe.answer_with = lambda event: None
    world.exporter.run_once(world.now + 3600 * NANOS + wait_max_minutes * MINUTE)
    assert (states(world), world.status().stops) == (["accepted"], ())


def test_an_unmapped_customer_stays_stopped_through_a_flush(world: World, stripe: MemoryStripe) -> None:
    """A flush does not ask Stripe about a customer that the configuration names nowhere, and says so still."""
    world.book("initech", "1")
    world.exporter.flush(world.now)
    assert world.exporter.flush(world.now).sent == 0
    assert [stop.code for stop in world.status().stops] == ["no_stripe_customer"]


def test_an_address_stays_the_one_of_the_first_attempt(world: World, stripe: MemoryStripe) -> None:
    """A mapping that changed meanwhile must not move an event that may be at Stripe already."""
    stripe.set_faults(["reset-before"])
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    world.restart(customers={"acme": "cus_new"})
    world.exporter.run_once(world.now + MINUTE)
    assert stripe.total("cus_acme") == 1_000_000


def test_what_was_decided_for_one_account_is_never_sent_to_another(world: World, stripe: MemoryStripe) -> None:
    """Intents of a test key do not reach the live account; they wait and are shown by account."""
    stripe.set_faults(["reset-before"])
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    world.restart(api_key="sk_live_1")
    world.exporter.run_once(world.now + MINUTE)
    assert stripe.counted == []
    assert world.status().waiting_by_account == {("default", False): 1}


def test_one_call_at_a_time_per_stripe_lane(world: World, stripe: MemoryStripe) -> None:
    """Two of our customers that share a Stripe customer are sent one after the other, with all workers busy."""
    world.restart(customers={"a": "cus_1", "b": "cus_1", "c": "cus_2"}, workers=4)
    for number in range(6):
        for customer in ("a", "b", "c"):
            world.book(customer, "1", at=NOON + number * 5 * MINUTE)
    world.exporter.flush(NOON + HOUR_NANOS)
    assert stripe.overlaps == 0
    assert (stripe.total("cus_1"), stripe.total("cus_2")) == (12_000_000, 6_000_000)


def test_a_fault_of_the_client_itself_counts_as_unknown(world: World, stripe: MemoryStripe) -> None:
    """An exception that is no answer may come after the bytes left, so it is repeated, not given up."""

    def explode(event: object) -> Answer:
        raise RuntimeError("broken pipe")

    stripe.answer_with = explode
    world.book("acme", "1")
    world.now += 10 * MINUTE
    world.exporter.run_once(world.now)
    (intent,) = world.intents()
    assert (intent.state, intent.answer_message) == ("unknown", "RuntimeError: broken pipe")


def test_future_stamps_are_held_until_due(world: World, stripe: MemoryStripe) -> None:
    """Events of a clock that runs ahead are not sent before Stripe would take them."""
    world.book("acme", "1", at=NOON + HOUR_NANOS)
    world.exporter.flush(world.now)
    assert stripe.attempts == []
    world.exporter.run_once(NOON + HOUR_NANOS)
    assert stripe.total("cus_acme") == 1_000_000


def test_refused_intents_keep_what_stripe_said(world: World, stripe: MemoryStripe) -> None:
    """A refusal keeps its code, text and request id for the person who must look; the lane goes on."""
    answers = iter([Answer(400, message="days in past", request_id="req_1")])
    stripe.answer_with = lambda event: next(answers, None)
    world.book("acme", "1")
    world.book("acme", "1", at=NOON + 5 * MINUTE)
    world.exporter.flush(world.now + 10 * MINUTE)
    refused, accepted = world.intents()
    assert (refused.state, refused.answer_code, refused.request_id) == ("rejected", "too_old", "req_1")
    assert accepted.state == "accepted"


def drain(pacer: Pacer, calls: int) -> None:
    for _ in range(calls):
        pacer.take()


def test_the_pace_is_kept_halved_on_limits_and_recovered() -> None:
    """Calls are spaced at the rate; a rate limit doubles the space, good answers bring it back, and no further."""
    waited: list[int] = []
    pacer = Pacer(20, read_nanos=lambda: sum(waited), pause=waited.append)
    drain(pacer, 41)
    assert sum(waited) == pytest.approx(2 * NANOS, abs=NANOS // 5)
    pacer.slow_down()
    assert pacer.interval_nanos == NANOS // 10
    for _ in range(100):
        pacer.speed_up()
    assert pacer.interval_nanos == NANOS // 20
    for _ in range(20):
        pacer.slow_down()
    assert pacer.interval_nanos == NANOS


def test_a_rate_limit_slows_the_whole_account(world: World, stripe: MemoryStripe) -> None:
    """A 429 with a reason halves the pace for every lane."""
    stripe.set_faults(["429"])
    world.book("acme", "1")
    before = world.exporter._pacer.interval_nanos
    world.exporter.run_once(NOON + 10 * MINUTE)
    assert world.exporter._pacer.interval_nanos == 2 * before


def test_stopping_ends_a_run_between_rounds(world: World, stripe: MemoryStripe) -> None:
    """A stop from another thread leaves the rest for the next start."""
    world.book("acme", "1")
    world.exporter.stop()
    world.exporter.run_once(NOON + 10 * MINUTE)
    assert stripe.attempts == []
    assert states(world) == ["pending"]


def test_only_what_waits_is_marked_as_being_sent(world: World) -> None:
    """An intent that a comparison confirmed meanwhile is not sent after all."""
    world.book("acme", "1")
    world.exporter.flush(world.now)
    (intent,) = world.intents()
    pairs = [(intent.intent_id, "cus_acme")]
    assert world.store.transact(lambda conn: deliveries.mark_sending(conn, pairs, world.now)) == set()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"api_key": "pk_test_1"}, "stripe.api_key"),
        ({"api_base": "http://localhost:1/"}, "stripe.api_base"),
        ({"window_nanos": 7 * MINUTE}, "stripe.window"),
        ({"currency": "USD"}, "stripe.currency"),
        ({"customers": {"acme": "acme"}}, "customers.acme.stripe"),
        ({"workers": 0}, "stripe.workers"),
        ({"event_name": ""}, "stripe.event_name"),
    ],
)
def test_settings_that_cannot_work_name_themselves(changes: dict[str, object], text: str) -> None:
    """A wrong setting is refused at once, by its name, and no key is ever shown."""
    with pytest.raises(StripeSettingsError, match=text) as caught:
        StripeSettings(**{"api_key": "sk_test_hidden", **changes})  # type: ignore[arg-type]
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(("key", "rate", "live"), [("sk_test_1", 20, False), ("rk_live_1", 800, True)])
def test_the_key_tells_mode_and_pace(key: str, rate: int, live: bool) -> None:
    """Sandboxes get 20 calls a second, live accounts 800, unless set; the key is not in the repr."""
    settings = StripeSettings(api_key=key)
    assert (settings.rate, settings.livemode) == (rate, live)
    assert key not in repr(settings)
