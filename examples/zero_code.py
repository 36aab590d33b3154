"""No set-up in the program: `opentelemetry-instrument` loads the instrumentations and otelbill with them.

    pip install opentelemetry-distro opentelemetry-instrumentation-openai
    otelbill collector &
    export OTEL_TRACES_EXPORTER=none OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none
    OPENAI_API_KEY=sk-... opentelemetry-instrument python examples/zero_code.py

The exporters are only switched off because there is no OpenTelemetry Collector here; leave yours as they are. Who pays
is the one thing that cannot be guessed. A call outside every `customer` block is not lost: `otelbill suspense` lists
it, and `otelbill adjust` gives it to somebody.
"""

import openai

import otelbill

client = openai.OpenAI()


def ask(question: str) -> str:
    """An ordinary call; nothing here knows of telemetry or billing."""
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": question}])
    return answer.choices[0].message.content or ""


if __name__ == "__main__":
    with otelbill.customer("acme"):
        print(ask("What is a meter?"))
        print(ask("And what is a ledger?"))
    print(ask("Who pays for this?"))
