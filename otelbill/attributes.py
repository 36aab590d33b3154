"""Owns the name of every span attribute this package writes or reads, once.
Does not own which of them may leave the process; that is `content`.

GenAI names follow the OpenTelemetry GenAI semantic conventions 1.41 (`gen_ai.provider.name`, dotted cache counters);
names of older versions and of other dialects appear only in the allow-list of `content`.
"""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = "1"

CUSTOMER_ID: Final = "otelbill.customer.id"
PROJECT_ID: Final = "otelbill.project.id"
RUN_ID: Final = "otelbill.run.id"
STEP: Final = "otelbill.step"
ATTEMPT: Final = "otelbill.attempt"
METER: Final = "otelbill.meter"
QUANTITY: Final = "otelbill.quantity"
UNIT: Final = "otelbill.unit"
BILLABLE: Final = "otelbill.billable"
REASON: Final = "otelbill.reason"
EVENT_ID: Final = "otelbill.event.id"
SCHEMA: Final = "otelbill.schema.version"

ERROR_TYPE: Final = "error.type"
