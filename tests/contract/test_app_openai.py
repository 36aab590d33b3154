"""Calls of the real OpenAI client, instrumented by OpenLLMetry, arrive with their payer and without their content."""

from __future__ import annotations

import pytest

from tests.contract.app_sink import Sink, open_sink, run_app

APP = """
import asyncio, openai, otelbill
otelbill.configure()
options = dict(api_key="sk-canary-key", base_url="{provider}", max_retries=0)
prompt = lambda payer: [{{"role": "user", "content": payer + " CANARY-PROMPT jane@example.com"}}]

@otelbill.metered(step="plain")
def plain(payer):
    with openai.OpenAI(**options) as client:
        client.chat.completions.create(model="gpt-4o", messages=prompt(payer), user=payer)

@otelbill.metered(step="stream")
async def stream(client, payer):
    arguments = dict(model="gpt-4o", messages=prompt(payer), stream=True, stream_options={{"include_usage": True}})
    async for chunk in await client.chat.completions.create(**arguments):
        yield chunk

async def work(client, payer):
    with otelbill.customer(payer, project="chat"):
        for _ in range(3):
            async for _ in stream(client, payer):
                await asyncio.sleep(0)

async def main():
    async with openai.AsyncOpenAI(**options) as client:
        await asyncio.gather(*(work(client, payer) for payer in ("acme", "globex", "initech")))

asyncio.run(main())
with otelbill.customer("acme"):
    plain("acme")
try:
    with otelbill.customer("acme"):
        openai.OpenAI(**options).chat.completions.create(model="gpt-4o", messages="CANARY-PROMPT")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.fixture(params=["unset", "true"])
def sink(request: pytest.FixtureRequest) -> Sink:
    """What arrived from the app above, with content capture switched off by us, or on by the user."""
    capture = {} if request.param == "unset" else {"TRACELOOP_TRACE_CONTENT": request.param}
    with open_sink() as opened:
        script = APP.format(provider=f"http://127.0.0.1:{opened.port}/v1")
        run = run_app(script, OTELBILL_ENDPOINT=opened.endpoint, OTELBILL_TOKEN="t", **capture)
    assert run.status == 0, run.errors
    assert set(opened.tokens) == {"Bearer t"}
    return opened


def test_calls_arrive_with_payer_step_and_usage_and_without_content(sink: Sink) -> None:
    """Every model call bills the customer whose prompt it was, and no byte of prompt, answer or key leaves the app."""
    calls = [span for span in sink.spans() if "gen_ai.response.id" in span]
    assert len(calls) == 10
    for call in calls:
        assert call["gen_ai.response.id"] == f"chatcmpl-{call['otelbill.customer.id']}"
        assert call["otelbill.step"] in {"plain", "stream"}
        assert (call["gen_ai.usage.input_tokens"], call["gen_ai.usage.output_tokens"]) == (12, 5)
        assert call["gen_ai.usage.cache_read.input_tokens"] == 4
    steps = [span for span in sink.spans() if span["name"] in {"plain", "stream"}]
    assert len(steps) == 10
    sent = b"".join(sink.bodies)
    for secret in (b"CANARY", b"canary", b"jane@", b"sk-"):
        assert secret not in sent
