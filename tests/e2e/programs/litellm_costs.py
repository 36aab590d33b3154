"""What litellm says that calls cost: JSON lines in, JSON lines out. Runs in litellm's own environment, not in ours."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # the list inside the package; nothing is fetched

import litellm
from litellm.types.utils import (
    CacheCreationTokenDetails,
    CompletionTokensDetailsWrapper,
    PromptTokensDetailsWrapper,
    Usage,
)


def create_usage(quantities: dict[str, int]) -> Usage:
    """Our disjoint quantities in litellm's terms: its prompt includes what was cached."""
    read, write, hour = (
        quantities.get(name, 0) for name in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")
    )
    details = PromptTokensDetailsWrapper(
        cached_tokens=read,
        cache_creation_tokens=write,
        cache_creation_token_details=CacheCreationTokenDetails(
            ephemeral_5m_input_tokens=write - hour, ephemeral_1h_input_tokens=hour
        ),
        audio_tokens=quantities.get("audio_input_tokens", 0),
    )
    return Usage(
        prompt_tokens=quantities.get("input_tokens", 0) + read + write,
        completion_tokens=quantities.get("output_tokens", 0),
        total_tokens=0,
        prompt_tokens_details=details,
        completion_tokens_details=CompletionTokensDetailsWrapper(
            reasoning_tokens=quantities.get("reasoning_tokens", 0),
            audio_tokens=quantities.get("audio_output_tokens", 0),
        ),
        cache_read_input_tokens=read,
        cache_creation_input_tokens=write,
    )


def find_cost(row: dict[str, Any]) -> float | None:
    """USD; None when litellm does not know the model."""
    try:
        costs = litellm.cost_per_token(
            model=row["model"],
            custom_llm_provider=row["provider"],
            usage_object=create_usage(row["quantities"]),
            service_tier=row["service_tier"],
        )
    except Exception:  # noqa: BLE001 it raises many kinds, of its own and of others
        return None
    return costs[0] + costs[1]


for line in sys.stdin:
    sys.stdout.write(json.dumps(find_cost(json.loads(line))) + "\n")
