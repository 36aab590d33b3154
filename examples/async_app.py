"""Several customers at once in one event loop, with streamed answers.

otelbill collector &
OPENAI_API_KEY=sk-... python examples/async_app.py
"""

import asyncio
from collections.abc import AsyncIterator

import openai

import otelbill

otelbill.configure()
client = openai.AsyncOpenAI()


@otelbill.metered(step="chat")
async def stream_answer(question: str) -> AsyncIterator[str]:
    """An async generator is one step from its first item to its last, whoever consumes it."""
    stream = await client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},  # without it a stream does not say what it used
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


async def serve(customer: str, question: str) -> str:
    """One request. The block belongs to this task alone, whatever the other tasks do meanwhile."""
    async with otelbill.customer(customer):
        return "".join([piece async for piece in stream_answer(question)])


async def main() -> None:
    """Three customers, interleaved."""
    answers = await asyncio.gather(
        serve("acme", "Why is the sky blue?"),
        serve("globex", "Why is the sea salty, and was it always?"),
        serve("initech", "Why is the grass green?"),
    )
    print(*answers, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
