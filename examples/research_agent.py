"""A research agent that serves several customers at once, and whose usage is billed to each of them.

Each question goes through nested steps: plan -> research (search and read, in parallel) -> write. What is needed for
billing are the lines with `otelbill`; everything else is an ordinary program around the `openai` client.

`otelbill demo` runs this file with a local provider and a local Stripe. Against a provider of your own:

    otelbill collector &                       # the sidecar, on its default ports
    OPENAI_API_KEY=sk-... python examples/research_agent.py
"""

import asyncio
import json

import openai

import otelbill

otelbill.configure()  # joins OpenTelemetry, switches on the instrumentation of `openai`, leaves prompts out
client = openai.AsyncOpenAI()

QUESTIONS = [
    ("acme", "acme-1", "How do solid-state batteries age?"),
    ("acme", "acme-2", "Which ports handle the most containers, and why?"),
    ("globex", "globex-1", "What limits the yield of perovskite solar cells?"),
    ("initech", "initech-1", "Summarise the history of the stapler."),
    ("initech", "initech-2", "Why do printers jam?"),
    ("umbrella", "umbrella-1", "How are vaccines kept cold in transit?"),
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        },
    }
    for name, description in (("search_web", "Search the web."), ("search_library", "Search our document library."))
]


@otelbill.metered(step="plan")
async def plan(question: str) -> str:
    """A reasoning model decides what to look for."""
    answer = await client.chat.completions.create(
        model="gpt-5-mini",
        messages=[{"role": "user", "content": f"Plan the research for: {question}"}],
        # The local provider refuses this once, and `openai` tries again by itself. Other providers ignore the header.
        extra_headers={"x-otelbill-fault": "rate-limit-once"},
    )
    return answer.choices[0].message.content or ""


@otelbill.metered(step="search")
async def search(query: str) -> str:
    """An embedding, and usage that no provider knows of: a unit of your own, with a price in the rate card."""
    await client.embeddings.create(model="text-embedding-3-small", input=query)
    otelbill.record_usage("vector_queries", 3, unit="query")
    return f"Three documents about {query!r}: one says yes, one says no, one is undecided. " * 4


@otelbill.metered(step="read")
async def read(document: str) -> str:
    """A small model condenses what was found."""
    answer = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "system", "content": "Condense the text."}, {"role": "user", "content": document}],
    )
    return answer.choices[0].message.content or ""


@otelbill.metered(step="use_tool")
async def use_tool(query: str) -> str:
    """One tool call of the model: two steps deeper."""
    return await read(await search(query))


@otelbill.metered(step="research")
async def research(question: str, outline: str) -> str:
    """The model asks for tools; they run in parallel; the model gets their results."""
    messages: list = [
        {"role": "system", "content": "You are a careful researcher. " * 8},
        {"role": "user", "content": f"{question}\n\nOutline: {outline}"},
    ]
    asked = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=TOOLS)
    calls = asked.choices[0].message.tool_calls or []
    messages.append(asked.choices[0].message.model_dump(exclude_none=True))
    found = await asyncio.gather(*(use_tool(f"{question} {json.loads(c.function.arguments)['query']}") for c in calls))
    for call, text in zip(calls, found, strict=True):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
    answer = await client.chat.completions.create(model="gpt-4o", messages=messages, tools=TOOLS)
    return answer.choices[0].message.content or ""


@otelbill.metered(step="write")
async def write(findings: str) -> str:
    """A streamed answer. Without `include_usage` a stream does not say what it used, and could not be billed."""
    stream = await client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": f"Write a report: {findings}"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@otelbill.metered(step="translate")
async def translate(report: str) -> str:
    """The first model does not exist: that call costs nothing and is not billed. The second one answers."""
    ask = [{"role": "user", "content": f"Translate to German: {report}"}]
    try:
        answer = await client.chat.completions.create(model="polyglot-1", messages=ask)
    except openai.NotFoundError:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=ask)
    return answer.choices[0].message.content or ""


@otelbill.metered(step="headline")
async def headline(report: str) -> str:
    """A stream that was forgotten to be asked for its usage: otelbill holds it and says so, it never guesses."""
    stream = await client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": f"A headline for: {report}"}], stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def answer_question(customer: str, run: str, question: str) -> None:
    """One request of one customer. All that happens inside is theirs, however deep or parallel it is."""
    with otelbill.customer(customer, run=run):
        report = await write(await research(question, await plan(question)))
        if customer == "globex":
            await translate(report)
        if customer == "umbrella":
            await headline(report)
    print(f"{customer:9} {run:11} answered", flush=True)


async def main() -> None:
    """All questions at once."""
    print(f"{len(QUESTIONS)} questions", flush=True)
    await asyncio.gather(*(answer_question(*question) for question in QUESTIONS))


if __name__ == "__main__":
    asyncio.run(main())
