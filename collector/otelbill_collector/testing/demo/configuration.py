"""The demo's otelbill.yaml: customers, the local Stripe and a rate card. Owns the text, written to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from otelbill_collector.testing.demo.sidecar import Ports

CUSTOMERS: Mapping[str, str] = {
    "acme": "cus_DemoAcme",
    "globex": "cus_DemoGlobex",
    "initech": "cus_DemoInitech",
    "umbrella": "cus_DemoUmbrella",
}
STRIPE_KEY = "sk_test_demo"

_TEXT = """\
# Written by `otelbill demo`. Check changes with: otelbill check-config --config otelbill.yaml
data_dir: {folder}
listen:
  grpc: 127.0.0.1:{ports.grpc}
  http: 127.0.0.1:{ports.http}
  api: 127.0.0.1:{ports.api}

stripe:
  api_key: {key}        # a made-up key; the local Stripe takes any
  api_base: {stripe_url}

customers:
{customers}

# What customers pay, in USD. What providers cost is known without being written here.
rate_card:
  currency: USD
  prices:
    - {{unit: input_tokens, model: gpt-4o, price: "3.00", per: 1000000}}
    - {{unit: cache_read_tokens, model: gpt-4o, price: "1.50", per: 1000000}}
    - {{unit: output_tokens, model: gpt-4o, price: "12.00", per: 1000000}}
    - {{unit: output_tokens, model: gpt-4o, customer: acme, price: "11.00", per: 1000000}}   # acme negotiated
    - {{unit: input_tokens, model: gpt-4o-mini, price: "0.20", per: 1000000}}
    - {{unit: cache_read_tokens, model: gpt-4o-mini, price: "0.10", per: 1000000}}
    - {{unit: output_tokens, model: gpt-4o-mini, price: "0.80", per: 1000000}}
    - {{unit: vector_queries, price: "0.0001"}}                # a unit of our own
  markup:
    - {{percent: "25"}}                                       # every other model: provider cost plus 25 %
"""


def render_config(folder: Path, ports: Ports, stripe_url: str) -> str:
    """The file's text."""
    return _TEXT.format(
        folder=json.dumps(str(folder)),
        ports=ports,
        key=STRIPE_KEY,
        stripe_url=stripe_url,
        customers="\n".join(f"  {name}: {{stripe: {stripe}}}" for name, stripe in CUSTOMERS.items()),
    )
