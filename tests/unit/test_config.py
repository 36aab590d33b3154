"""The configuration is complete without a file, exact with one, and complains about everything at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from otelbill_collector.config import (
    Address,
    Config,
    ConfigError,
    Customer,
    Forward,
    Stripe,
    load_config,
    render_problems,
)
from otelbill_collector.domain.instants import HOUR_NANOS, MINUTE_NANOS, parse_instant
from otelbill_collector.domain.ratecard import ChargePrice, Markup, Selector

FULL = """
data_dir: /var/lib/otelbill
listen: {grpc: "0.0.0.0:1", http: "[::1]:2", api: "localhost:3"}
tokens: ["${SENDER_TOKEN}", plain]
limits:
  body_bytes: ${BODY}
  commit_linger_ms: 0
claims: {grace_seconds: 5}
forward:
  endpoint: http://127.0.0.1:4318/
  headers: {authorization: "Bearer ${SENDER_TOKEN}"}
  cost_names: [gen_ai, otelbill, gen_ai]
stripe:
  api_key: ${STRIPE_API_KEY}
  mode: units
  window: 1h
  grace: 90s
  meters: {input_tokens: tokens_in}
customers:
  acme: {stripe: cus_123}
  no: {}
  010: {}
rate_card:
  currency: USD
  prices:
    - {unit: input_tokens, model: "gpt-4o-mini", price: "0.60", per: 1000000}
    - {unit: output_tokens, model: "gpt-4o*", provider: openai, customer: acme, step: research,
       from: 2026-01-01, to: 2027-01-01T12:00:00Z, price: "2.40", per: 1000000}
    - {unit: vector_queries, price: 2}
  markup:
    - {percent: "20", provider: openai}
"""
ENVIRON = {"SENDER_TOKEN": "token-hush", "STRIPE_API_KEY": "sk_test_hush", "BODY": "1000"}


def write(folder: Path, text: str) -> Path:
    path = folder / "otelbill.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def list_problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[tuple[int | None, str, str]]:
    """line, path, message of everything wrong with a file"""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), environ or {})
    assert all(problem.remedy for problem in caught.value.problems)
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def test_everything_is_optional(tmp_path: Path) -> None:
    """No file, an empty file and a file of empty sections mean the documented defaults."""
    assert load_config(None, {}) == Config()
    for text in ("", "# nothing\n", "limits:\nrate_card:\nlisten: {}\n"):
        path = write(tmp_path, text)
        assert load_config(path, {}) == Config(source=path)


def test_sections_that_are_off_by_default_have_defaults_too(tmp_path: Path) -> None:
    """Turning forwarding or Stripe on needs only what cannot be guessed."""
    config = load_config(write(tmp_path, "forward: {endpoint: 'http://x'}\nstripe: {api_key: k}\n"), {})
    assert config.forward == Forward("http://x")
    assert config.stripe == Stripe("k")


def test_a_full_file(tmp_path: Path) -> None:
    """Every section arrives as it was written, with references resolved."""
    config = load_config(write(tmp_path, FULL), ENVIRON)
    assert config.data_dir == Path("/var/lib/otelbill")
    assert config.listen.http == Address("::1", 2)
    assert str(config.listen.http) == "[::1]:2"
    assert config.tokens == ("token-hush", "plain")
    assert (config.limits.body_bytes, config.limits.commit_linger_ms) == (1000, 0)
    assert config.claims.grace_seconds == 5
    assert config.forward is not None
    assert config.forward.endpoint == "http://127.0.0.1:4318"
    assert config.forward.headers == {"authorization": "Bearer token-hush"}
    assert config.forward.cost_names == ("gen_ai", "otelbill")
    assert config.stripe is not None
    assert config.stripe.api_key == "sk_test_hush"
    assert (config.stripe.window_nanos, config.stripe.grace_nanos) == (HOUR_NANOS, 90 * MINUTE_NANOS // 60)
    assert config.stripe.meters == {"input_tokens": "tokens_in"}
    assert config.customers == {"acme": Customer("cus_123"), "no": Customer(), "010": Customer()}
    assert config.rate_card.prices == (
        ChargePrice("input_tokens", 6 * 10**11, Selector(model="gpt-4o-mini")),
        ChargePrice(
            "output_tokens",
            24 * 10**11,
            Selector(
                "acme",
                "research",
                "gpt-4o*",
                "openai",
                parse_instant("2026-01-01"),
                parse_instant("2027-01-01T12:00:00Z"),
            ),
        ),
        ChargePrice("vector_queries", 2 * 10**18),
    )
    assert config.rate_card.markups == (Markup(200_000, Selector(provider="openai")),)


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """Neither the text of a configuration nor any complaint about it contains a secret."""
    config = load_config(write(tmp_path, FULL), ENVIRON)
    assert "hush" not in repr(config)
    broken = FULL.replace("plain]", "'']").replace("window: 1h", "window: ${STRIPE_API_KEY}")
    broken = broken.replace('"20"', '"${STRIPE_API_KEY}"').replace("{stripe: cus_123}", '{stripe: "${SENDER_TOKEN}"}')
    broken = broken.replace("mode: units", "mode: ${STRIPE_API_KEY}").replace("/var/lib/otelbill", "[sk_test_hush]")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, broken), ENVIRON)
    assert len(caught.value.problems) == 6
    for text in (str(caught.value), repr(caught.value), render_problems(caught.value.problems)):
        assert "hush" not in text


def test_all_problems_at_once(tmp_path: Path) -> None:
    """One run lists every mistake with its line, in the order of the file."""
    text = """
lisen: {grpc: "127.0.0.1:1"}
listen: {grcp: "127.0.0.1:1", http: "4328"}
tokens: ["${MISSING_TOKEN}"]
limits: {body_bytes: 0, spans_per_request: many}
stripe: {mode: cash}
customers: {acme: {stripe: acme}}
rate_card:
  prices:
    - {unit: a, price: 0.60}
    - {unit: a, price: "1"}
    - {unit: a, price: "2"}
    - {price: "0.0000000000001"}
"""
    assert list_problems(tmp_path, text) == [
        (2, "lisen", "is not a setting"),
        (3, "listen.http", "is not host:port"),
        (3, "listen.grcp", "is not a setting"),
        (4, "tokens[0]", "refers to the environment variable MISSING_TOKEN, which is not set"),
        (5, "limits.body_bytes", "is too small"),
        (5, "limits.spans_per_request", "is not a whole number"),
        (6, "stripe.api_key", "is missing"),
        (6, "stripe.mode", "is not one of the choices"),
        (7, "customers.acme.stripe", "is not a Stripe customer id"),
        (10, "rate_card.prices[0].price", "is a floating-point number, which cannot hold money exactly"),
        (12, "rate_card.prices[2]", "overlaps prices[1]: the same unit a at the same time"),
        (13, "rate_card.prices[3].unit", "is missing"),
        (
            13,
            "rate_card.prices[3].price",
            "price 0.0000000000001 per 1 has more than 12 decimals for one unit",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("lisen: {}", "did you mean listen?"),
        ("limits: {body_byte: 1}", "did you mean limits.body_bytes?"),
        ("rate_card: {prices: [{unit: a, price: 1, modell: m}]}", "did you mean rate_card.prices[0].model?"),
        ("rate_card: {prices: [{unit: a, price: 1, frm: 2026-01-01}]}", "did you mean rate_card.prices[0].from?"),
        ("customers: {acme: {strip: cus_1}}", "did you mean customers.acme.stripe?"),
        ("claims: {zzz: 1}", "known here: accept_estimates, grace_seconds"),
    ],
)
def test_unknown_settings_are_errors(tmp_path: Path, text: str, suggestion: str) -> None:
    """A misspelt setting is never ignored, and the nearest one is offered."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), {})
    assert [problem.remedy for problem in caught.value.problems] == [suggestion]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("limits: {body_bytes: 2000000000}", "limits.decompressed_bytes", "is less than limits.body_bytes"),
        ("limits: {inflight_bytes: 1}", "limits.inflight_bytes", "is less than limits.decompressed_bytes"),
        ("stripe: {api_key: k, mode: units}", "stripe.meters", "is missing in mode units"),
        ("stripe: {api_key: k, meters: {a: b}}", "stripe.meters", "has no effect in mode money"),
        ("stripe: {api_key: k, window: 7m}", "stripe.window", "is not between 1 minute and 1 hour"),
        ("stripe: {api_key: k, window: 2h}", "stripe.window", "is not between 1 minute and 1 hour"),
        ("stripe: {api_key: k, window: 0s}", "stripe.window", "is not between 1 minute and 1 hour"),
        ("rate_card: {currency: EUR, markup: [{percent: 1}]}", "rate_card.markup", "a markup needs a card in USD"),
        ("rate_card: {currency: euro}", "rate_card.currency", "is not a currency code"),
        ("rate_card: {prices: [{unit: a, price: true}]}", "rate_card.prices[0].price", "is not a decimal number"),
        ("rate_card: {prices: [{unit: a, price: 1, customer: 12}]}", "rate_card.prices[0].customer", "is not text"),
        ("rate_card: {prices: {unit: a}}", "rate_card.prices", "is not a list"),
        ("rate_card: [1]", "rate_card", "is not a section"),
        ("customers: [acme]", "customers", "is not a mapping"),
        ("forward: {}", "forward.endpoint", "is missing"),
        ("forward: {endpoint: 'ftp://x'}", "forward.endpoint", "is not an http or https URL"),
        ("forward: {endpoint: 'http://x', cost_names: []}", "forward.cost_names", "has too few entries"),
        ("claims: {grace_seconds: 1}\nclaims: {grace_seconds: 2}", "claims", "is given twice"),
        ("claims: {grace_seconds: true}", "claims.grace_seconds", "is not a whole number"),
        ("data_dir: ${not a name}", "data_dir", "has a reference that is not ${NAME}"),
        ("[1, 2]", "", "is not a section"),
        ("a: [", "", "is not YAML"),
        ("tokens: &x [*x]", "tokens", "is nested too deeply"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, path: str, message: str) -> None:
    """Each mistake is reported at its setting, in words."""
    found = list_problems(tmp_path, text)
    assert any(at.startswith(path) and words.startswith(message) for _, at, words in found), found


def test_a_customer_written_as_its_stripe_id_is_answered_with_the_whole_form(tmp_path: Path) -> None:
    """The short form that everybody tries first leads to the line to write."""
    ((_, path, _),) = list_problems(tmp_path, "customers: {acme: cus_123}")
    assert path == "customers.acme"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "customers: {acme: cus_123}"), {})
    assert "acme: {stripe: cus_123}" in str(caught.value)


def test_precedence(tmp_path: Path) -> None:
    """An override wins over the environment, the environment over the file."""
    path = write(tmp_path, "data_dir: from-file\nlisten: {grpc: '127.0.0.1:1'}\n")
    environ = {"OTELBILL_DATA_DIR": "from-environment"}
    assert load_config(path, {}).data_dir == Path("from-file")
    assert load_config(path, environ).data_dir == Path("from-environment")
    config = load_config(
        path, environ, {"data_dir": "from-override", "listen.grpc": "127.0.0.1:2", "limits.body_bytes": 5}
    )
    assert config.data_dir == Path("from-override")
    assert (config.listen.grpc.port, config.listen.api.port, config.limits.body_bytes) == (2, 4329, 5)


@pytest.mark.parametrize("text", ["", "~", "# nothing", "listen:", "listen: {}"])
def test_an_override_of_an_empty_section_is_kept(tmp_path: Path, text: str) -> None:
    """A section whose lines are all commented out does not swallow the command line."""
    config = load_config(write(tmp_path, text), {}, {"listen.grpc": "127.0.0.1:2", "data_dir": "here"})
    assert (config.listen.grpc.port, config.data_dir) == (2, Path("here"))


def test_references_can_be_written_as_text(tmp_path: Path) -> None:
    """$${NAME} is the text ${NAME}, and a value of the environment is not read as YAML or as another reference."""
    path = write(tmp_path, 'tokens: ["$${HOME}", "${TRICK}"]\n')
    assert load_config(path, {"TRICK": "a: [${HOME}"}).tokens == ("${HOME}", "a: [${HOME}")


def test_files_that_cannot_be_read_are_problems(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not text end in a complaint that names the file."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert str(path) in render_problems(caught.value.problems)


def test_nested_anchors_do_not_exhaust_memory(tmp_path: Path) -> None:
    """A few lines that stand for billions of values are a complaint, not an outage."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    found = list_problems(tmp_path, "\n".join(lines))
    assert any(words.startswith("is nested too deeply or too large") for _, _, words in found)


def test_problems_for_the_terminal(tmp_path: Path) -> None:
    """A person sees file, line, setting, what is wrong, and what to do."""
    path = write(tmp_path, "claims:\n  grace_seconds: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert render_problems(caught.value.problems) == (
        f"{path}:2 claims.grace_seconds: is too small\n    -> the least is 0\n1 problem"
    )
    assert str(caught.value) == f"{path}:2: claims.grace_seconds: is too small (the least is 0)"
