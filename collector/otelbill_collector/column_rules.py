"""Claims and rating of spans in columns, put together from the rules of single spans. Owns nothing else."""

from __future__ import annotations

from otelbill_collector.decode.column_claims import create_column_claims
from otelbill_collector.decode.column_keys import derive_keys
from otelbill_collector.ledger.column_booking import ColumnRules
from otelbill_collector.rules import RuleSet


def build_column_rules(rules: RuleSet) -> ColumnRules | None:
    """The same rules for spans in columns; None where there is no native library."""
    claims = create_column_claims()
    return None if claims is None else ColumnRules(derive_keys, claims.decide, rules.rate_columns)
