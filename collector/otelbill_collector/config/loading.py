"""Loads the configuration: file, then environment, then overrides. Collects every problem before it complains.

Owns the order of precedence and the relations between settings; single values are `file_model`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from otelbill_collector.config.complaints import add_complaints
from otelbill_collector.config.config_file import ConfigFile
from otelbill_collector.config.document import Document, load_document
from otelbill_collector.config.file_model import (
    BillingSection,
    ClaimsSection,
    CustomerSection,
    ForwardSection,
    LimitsSection,
    Section,
    StripeSection,
)
from otelbill_collector.config.problems import ConfigError, sort_problems
from otelbill_collector.config.rate_card import check_valid_entries, create_provider_prices
from otelbill_collector.config.rate_card_file import read_rate_card
from otelbill_collector.config.values import (
    Billing,
    Claims,
    Config,
    Customer,
    Forward,
    Limits,
    Listen,
    Retention,
    Stripe,
)
from otelbill_collector.decode.dialects import list_dialects
from otelbill_collector.domain.ratecard import AT_COST
from otelbill_collector.domain.windows import require_window_length

ValidSection = TypeVar("ValidSection", bound=Section)

DATA_DIR_VARIABLE = "OTELBILL_DATA_DIR"


def load_config(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, str | int] | None = None
) -> Config:
    """The configuration of a file (None: defaults), the environment and overrides by path (`{"listen.grpc": "..."}`).

    Overrides win over the environment, the environment over the file. Raises ConfigError with all problems.
    """
    document = load_document(path, environ)
    if document.root is None:
        document.root = {}  # a file of comments
    if environ.get(DATA_DIR_VARIABLE):
        _override(document, "data_dir", environ[DATA_DIR_VARIABLE])
    for name, value in (overrides or {}).items():
        _override(document, name, value)
    config = _create_config(document, path, environ)
    if config is None or document.problems:
        raise ConfigError(sort_problems(document.problems, document.file))
    return config


def _override(document: Document, name: str, value: str | int) -> None:
    """Put a value at a dotted path, over what the file says there."""
    *sections, last = name.split(".")
    target = document.root
    for section in sections:
        if not isinstance(target, dict):
            return  # a complaint about what the file has there follows
        if target.get(section) is None:
            target[section] = {}
        target = target[section]
    if isinstance(target, dict):
        target[last] = value


def _create_config(document: Document, path: Path | None, environ: Mapping[str, str]) -> Config | None:
    """The configuration, or None after noting what is wrong; sections that are valid are checked to the end."""
    root = _drop_empty(document.root)
    try:
        file = ConfigFile.model_validate(root)
    except ValidationError as error:
        add_complaints(document, error, ConfigFile)
        _check_valid_sections(document, root)
        return None
    _check_limits(document, file.limits)
    card = read_rate_card(document, file.rate_card, path, environ) if file.rate_card is not None else AT_COST
    return Config(
        data_dir=Path(file.data_dir),
        listen=Listen(**dict(file.listen)),
        tokens=tuple(token.get_secret_value() for token in file.tokens),
        limits=Limits(**dict(file.limits)),
        claims=_create_claims(document, file.claims),
        forward=_create_forward(file.forward) if file.forward else None,
        stripe=_create_stripe(document, file.stripe) if file.stripe else None,
        customers={name: _create_customer(customer) for name, customer in file.customers.items()},
        billing=_create_billing(file.billing),
        retention=Retention(file.retention.evidence, file.retention.closed_only),
        rate_card=card or AT_COST,
        provider_prices=create_provider_prices(document, file.provider_prices),
        source=path,
    )


def _check_valid_sections(document: Document, root: object) -> None:
    """Relations inside the sections that are valid by themselves, so that one typing error does not hide them."""
    if not isinstance(root, dict):
        return
    if limits := _find_section(LimitsSection, root.get("limits", {})):
        _check_limits(document, limits)
    if stripe := _find_section(StripeSection, root.get("stripe")):
        _create_stripe(document, stripe)
    check_valid_entries(document, root.get("rate_card"))


def _find_section(model: type[ValidSection], value: object) -> ValidSection | None:
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


def _drop_empty(root: object) -> object:
    """A section of which every line is commented out is null in YAML; it means its defaults."""
    return {key: value for key, value in root.items() if value is not None} if isinstance(root, dict) else root


def _check_limits(document: Document, limits: LimitsSection) -> None:
    if limits.decompressed_bytes < limits.body_bytes:
        path = ("limits", "decompressed_bytes")
        document.add_problem(path, "is less than limits.body_bytes", "a body that is not compressed must fit as well")
    if limits.inflight_bytes < limits.decompressed_bytes:
        path = ("limits", "inflight_bytes")
        document.add_problem(
            path, "is less than limits.decompressed_bytes", "the largest request could never be taken; raise it"
        )


def _create_claims(document: Document, section: ClaimsSection) -> Claims:
    known = {dialect.name for dialect in list_dialects()}
    for number, name in enumerate(section.accept_estimates):
        if name not in known:
            place = ("claims", "accept_estimates", number)
            document.add_problem(place, f"{name!r} is no dialect", "`otelbill dialects` lists them, such as openlit")
    return Claims(section.grace_seconds, tuple(dict.fromkeys(section.accept_estimates)))


def _create_customer(section: CustomerSection) -> Customer:
    return Customer(section.stripe, section.group, section.contract, section.time_zone, section.anchor_day)


def _create_billing(section: BillingSection) -> Billing:
    return Billing(section.time_zone, section.anchor_day, section.grace, section.approve, section.currency_digits)


def _create_forward(section: ForwardSection) -> Forward:
    headers = {name: value.get_secret_value() for name, value in section.headers.items()}
    names = tuple(dict.fromkeys(section.cost_names))
    return Forward(section.endpoint, headers, names, section.queue_spans)


def _create_stripe(document: Document, section: StripeSection) -> Stripe:
    if section.mode == "units" and not section.meters:
        document.add_problem(("stripe", "meters"), "is missing in mode units", "name the Stripe meter of each unit")
    if section.mode == "money" and section.meters:
        document.add_problem(("stripe", "meters"), "has no effect in mode money", "set mode: units, or remove it")
    try:
        require_window_length(section.window)
    except ValueError:
        message = "is not between 1 minute and 1 hour, or does not divide the hour"
        document.add_problem(("stripe", "window"), message, 'choose one such as "5m" or "1h"')
    return Stripe(
        api_key=section.api_key.get_secret_value(),
        api_base=section.api_base,
        mode=section.mode,
        event_name=section.event_name,
        window_nanos=section.window,
        grace_nanos=section.grace,
        rate_per_second=section.rate_per_second,
        since_nanos=section.since or 0,
        meters=dict(section.meters),
    )
