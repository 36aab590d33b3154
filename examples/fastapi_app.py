"""A web service: a middleware says who pays, the endpoints need not know.

    otelbill collector &
    OPENAI_API_KEY=sk-... python examples/fastapi_app.py
    curl -H 'X-Customer: acme' 'http://127.0.0.1:8000/answer?question=why'
    curl -H 'X-Customer: acme' 'http://127.0.0.1:8000/stream?question=why'

In your service take the customer from what you have authenticated, never from a header that anybody can send.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, StreamingResponse

import otelbill

otelbill.configure()
client = openai.OpenAI()
async_client = openai.AsyncOpenAI()


@asynccontextmanager
async def run(_: FastAPI) -> AsyncIterator[None]:
    """A server that is told to stop by SIGTERM may end without Python's usual exit, so what waits is sent here."""
    yield
    otelbill.flush()


app = FastAPI(lifespan=run)


@app.middleware("http")
async def attribute(request: Request, call_next):
    """Everything that the request does is usage of its customer, in worker threads and streamed bodies too."""
    customer = request.headers.get("x-customer")
    if customer is None:
        return PlainTextResponse("say who you are: X-Customer: acme\n", status_code=401)
    async with otelbill.customer(customer):
        return await call_next(request)


@app.get("/answer")
@otelbill.metered(step="answer")
def answer(question: str) -> dict[str, str | None]:
    """A plain function: FastAPI runs it in a worker thread."""
    found = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": question}])
    return {"answer": found.choices[0].message.content}


@otelbill.metered(step="stream")
async def stream_pieces(question: str) -> AsyncIterator[str]:
    """Is consumed after the endpoint has returned, and is billed all the same."""
    stream = await async_client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": question}],
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


@app.get("/stream")
async def stream(question: str) -> StreamingResponse:
    """The answer, piece by piece."""
    return StreamingResponse(stream_pieces(question), media_type="text/plain")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), log_level="warning")
