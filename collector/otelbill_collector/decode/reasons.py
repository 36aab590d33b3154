"""The closed list of reasons a span is or is not billable. Owns codes and meanings; the rules live elsewhere."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a candidate is (first five) or is not billable. These codes are stored, shown and sent: never renamed."""

    PROVIDER_CALL = "provider_call"
    """A provider answered and reported usage."""
    TOOL_USAGE = "tool_usage"
    """A tool call that carries a metered quantity (`otelbill.meter`)."""
    EXPLICIT_USAGE = "explicit_usage"
    """The application recorded a quantity itself (`record_usage`)."""
    NO_USAGE_REPORTED = "no_usage_reported"
    """A call happened, its usage did not reach us: billable, held, never priced as zero."""
    INCONSISTENT_USAGE = "inconsistent_usage"
    """A call whose counts contradict each other (more cached than read, more reasoning than written): held."""

    AGGREGATE = "aggregate"
    """A parent that repeats what its descendants report. Billable only as a residual, when something is left."""
    AWAITING_CHILDREN = "awaiting_children"
    """A parent with totals, decided again after the grace time, when late children have arrived."""
    DUPLICATE_DESCRIPTION = "duplicate_description"
    """Another span describes the same provider call and keeps the claim."""
    FAILED_WITHOUT_USAGE = "failed_without_usage"
    """The call failed and reported no usage."""
    APP_CACHE_HIT = "app_cache_hit"
    """The application answered from its own cache; no provider was asked."""
    INTERNAL = "internal"
    """Marked `otelbill.billable=false`."""
    FREE_OPERATION = "free_operation"
    """An operation that providers do not charge for (counting tokens, fetching a stored response)."""
    UNKNOWN_OPERATION = "unknown_operation"
    """GenAI span of an operation no rule knows, without usage."""
    STRUCTURE = "structure"
    """Agent, chain, workflow, turn or tool span without usage: kept because parents and attribution lead through it."""
    INVALID_USAGE = "invalid_usage"
    """A count is no count (negative, not a number, too large): dead-lettered."""
