"""Prompt content goes in with the spans of every dialect and comes out nowhere: disk, log, API, metrics."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.otlp_requests import encode, make_attributes, make_chat
from tests.sidecar_process import Sidecar

_CANARY = "CANARY-7f3a9c"
_CONTENT = """
gen_ai.input.messages gen_ai.output.messages gen_ai.system_instructions gen_ai.tool.definitions
gen_ai.tool.call.arguments gen_ai.tool.call.result gen_ai.tool.args gen_ai.prompt gen_ai.completion input.value
output.value llm.invocation_parameters pydantic_ai.all_messages all_messages_events final_result tool_arguments
tool_response model_request_parameters events request_data response_data response raw_input input output logfire.msg
traceloop.entity.input traceloop.entity.output gen_ai.task.input gen_ai.task.output hidden_params metadata
langfuse.observation.input langfuse.observation.output langfuse.trace.input langfuse.trace.output gen_ai.response.image
gcp.vertex.agent.llm_request gcp.vertex.agent.llm_response gcp.vertex.agent.tool_call_args
gcp.vertex.agent.tool_response gcp.vertex.agent.data crew_agents crew_tasks crew_inputs tool.parameters tool.arguments
error.message error.stack_trace gen_ai.prompt.0.content gen_ai.completion.0.content
llm.input_messages.0.message.content llm.output_messages.0.message.content llm.prompts.0 llm.tools.0.tool.json_schema
llm.request.functions.0.parameters llm.openai.messages llm.openai.choices embedding.embeddings.0.embedding.text
output.images.0 ai.prompt ai.prompt.messages ai.response.text ai.response.toolCalls ai.response.object
ai.response.reasoning ai.toolCall.args ai.value ai.values ai.embedding langfuse.observation.metadata.note
langsmith.metadata.note metadata.note traceloop.association.properties.note llm.headers gen_ai.headers
some.attribute.nobody.knows
""".split()
_EVENTS = ["gen_ai.user.message", "gen_ai.choice", "gen_ai.client.inference.operation.details", "exception", "note"]


def _make_canary(seed: str, mark: str, **attributes: object) -> Span:
    span = make_chat(seed, **attributes)
    span.attributes.extend(make_attributes({name: f'[{{"content": "{mark} {name}"}}]' for name in _CONTENT}))
    for name in _EVENTS:
        names = ("content", "message", "exception.message", "exception.stacktrace", "gen_ai.event.content")
        span.events.add(
            name=name,
            time_unix_nano=span.end_time_unix_nano,
            attributes=make_attributes({key: f"{mark} {key}" for key in names}),
        )
    link = span.links.add(trace_id=span.trace_id, span_id=span.span_id)
    link.attributes.extend(make_attributes({"note": mark}))
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=f"refused: {mark}"))
    span.name = f"answer {mark}"
    return span


def _find_canaries(sidecar: Sidecar) -> list[str]:
    found = [
        str(path.relative_to(sidecar.data_dir))
        for path in sidecar.data_dir.rglob("*")
        if path.is_file() and _CANARY.encode() in path.read_bytes()
    ]
    answers = {"log": sidecar.read_log()}
    for path in (
        "/metrics",
        "/",
        "/v1/dead-letters",
        "/v1/held",
        "/v1/usage?by=customer,model,step,operation,reason,run",
    ):
        answers[path] = sidecar.get(path).text
    for letter in sidecar.get("/v1/dead-letters").json():
        for name in ("span_id", "trace_id"):
            answers[f"explain {name}"] = sidecar.get(f"/v1/explain/{letter[name]}").text
    return found + [name for name, text in answers.items() if _CANARY in text]


def test_no_prompt_content_is_kept_or_shown(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: content of every known dialect, in any kind of span, is on no disk, in no log and in no answer."""
    sidecar = new_sidecar().start()
    mark = f"{_CANARY} what the patient said"
    spans = [
        _make_canary("billed", mark),
        _make_canary("suspense", mark, customer=None),
        _make_canary("withheld", mark, input_tokens=None, output_tokens=None),
        _make_canary("dead", mark, input_tokens=-1),
        _make_canary("dead by text", mark, output_tokens=f"{mark} in a count"),
        _make_canary("ancient", mark, at=1),
    ]
    ignored = _make_canary("ignored", mark)
    for attribute in [item for item in ignored.attributes if item.key.startswith(("gen_ai.usage", "gen_ai.operation"))]:
        ignored.attributes.remove(attribute)
    assert sidecar.export(encode(*spans, ignored)).status_code == 200
    assert sidecar.export(encode(spans[0])[:-9]).status_code == 400
    assert sidecar.export(f'{{"resourceSpans": "{mark}"}}'.encode(), content_type="application/json").status_code == 400
    assert _find_canaries(sidecar) == []
    sidecar.restart()
    assert _find_canaries(sidecar) == []
    assert sidecar.run("dead-letters", "replay").returncode == 0
    assert sidecar.stop() == 0
    sidecar.start()
    assert _find_canaries(sidecar) == []
    assert sum(row["events"] for row in sidecar.usage()) == 2, "nothing was stored, so this run showed nothing"


def test_the_search_would_find_a_canary(new_sidecar: Callable[..., Sidecar]) -> None:
    """Guarantee: the check above is no idle one: a canary in an identifier that is kept is found."""
    sidecar = new_sidecar().start()
    sidecar.export(encode(make_chat("seen", f"{_CANARY}-customer")))
    assert "/v1/usage?by=customer,model,step,operation,reason,run" in _find_canaries(sidecar)
    sidecar.stop()
    with sqlite3.connect(sidecar.data_dir / "ledger.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert any(_CANARY.encode() in path.read_bytes() for path in sidecar.data_dir.rglob("*") if path.is_file())
