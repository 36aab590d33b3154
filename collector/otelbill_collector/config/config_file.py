"""otelbill.yaml as a whole. Owns which sections there are; their settings are those of `file_model`."""

from __future__ import annotations

from pydantic import Field

from otelbill_collector.config.file_model import (
    BillingSection,
    ClaimsSection,
    CustomerSection,
    ForwardSection,
    LimitsSection,
    ListenSection,
    RetentionSection,
    Secret,
    Section,
    StripeSection,
    Text,
)
from otelbill_collector.config.rate_card_model import ProviderPriceSection, RateCardReference


class ConfigFile(Section):
    """otelbill.yaml. Everything is optional."""

    data_dir: Text = Field(default="./otelbill-data", description="Directory of the ledger.")
    listen: ListenSection = Field(default_factory=ListenSection, description="Addresses to listen on.")
    tokens: list[Secret] = Field(
        default=[], description="Bearer tokens of which senders must present one. Without any, senders are not asked."
    )
    limits: LimitsSection = Field(default_factory=LimitsSection, description="Bounds of what is taken from senders.")
    claims: ClaimsSection = Field(default_factory=ClaimsSection, description="How spans of one call are told apart.")
    forward: ForwardSection | None = Field(default=None, description="Send spans on, with their cost. Off when absent.")
    stripe: StripeSection | None = Field(default=None, description="Send usage to Stripe. Off when absent.")
    customers: dict[Text, CustomerSection] = Field(
        default={}, description="What is known of customers, by customer id."
    )
    billing: BillingSection = Field(default_factory=BillingSection, description="Billing periods and invoices.")
    retention: RetentionSection = Field(
        default_factory=RetentionSection, description="How long evidence is kept, see docs/maintenance.md."
    )
    provider_prices: list[ProviderPriceSection] = Field(
        default=[], description="Provider prices that the price data does not have, or has wrong."
    )
    rate_card: RateCardReference | None = Field(
        default=None, description="What customers are charged. Without it, exactly what providers charge."
    )
