"""Work handed to threads. A new thread does not know who pays; `otelbill.carry` tells it.

    otelbill collector &
    OPENAI_API_KEY=sk-... python examples/threads.py

Where `opentelemetry-instrumentation-threading` is installed, `configure()` switches it on and threads are told anyway;
`carry` does no harm then, and does not depend on what is installed.
"""

from concurrent.futures import ThreadPoolExecutor

import openai

import otelbill

otelbill.configure()
client = openai.OpenAI()


@otelbill.metered(step="translate")
def translate(text: str) -> str:
    """Runs in a thread of the pool."""
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": f"Translate to French: {text}"}]
    )
    return answer.choices[0].message.content or ""


def translate_all(customer: str, texts: list[str], pool: ThreadPoolExecutor) -> list[str]:
    """The pool is shared by all customers; each call carries its own."""
    with otelbill.customer(customer):
        work = otelbill.carry(translate)
    return list(pool.map(work, texts))


if __name__ == "__main__":
    with ThreadPoolExecutor(max_workers=4) as shared:
        for answer in translate_all("acme", ["good morning", "good night", "see you"], shared):
            print(answer)
        for answer in translate_all("globex", ["one coffee, please"], shared):
            print(answer)
