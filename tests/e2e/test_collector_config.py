"""The shipped otel-collector.yaml is valid, lets through what otelbill counts with, and nothing a person wrote."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.e2e.conftest import Deploy
from tests.e2e.deployment import COLLECTOR_CONFIG, REPOSITORY
from tests.e2e.processes import wait_for
from tests.e2e.senders import CANARY, post_until_taken
from tests.e2e.sinks import open_sink

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

VOCABULARY = REPOSITORY / "collector" / "otelbill_collector" / "decode" / "vocabulary.yaml"
# What instrumentations write prompts, answers and user data into.
CONTENT_NAMES = """
    gen_ai.input.messages gen_ai.output.messages gen_ai.system_instructions gen_ai.tool.definitions gen_ai.prompt
    gen_ai.tool.call.arguments gen_ai.tool.call.result gen_ai.tool.args gen_ai.completion gen_ai.prompt.0.content
    gen_ai.completion.0.content input.value output.value llm.invocation_parameters llm.input_messages.0.message.content
    llm.output_messages.0.message.content llm.prompts.0 llm.tools.0.tool.json_schema llm.request.functions.0.name
    llm.anthropic.messages llm.openai.choices embedding.embeddings.0.embedding.text pydantic_ai.all_messages
    all_messages_events final_result tool_arguments tool_response model_request_parameters events request_data
    response_data response raw_input input output logfire.msg traceloop.entity.input traceloop.entity.output
    gen_ai.task.input gen_ai.task.output hidden_params metadata metadata.note langfuse.observation.input
    langfuse.observation.output langfuse.trace.input langfuse.observation.metadata.note langsmith.metadata.note
    gcp.vertex.agent.llm_request gcp.vertex.agent.llm_response crew_inputs tool.parameters tool.arguments error.message
    error.stack_trace ai.prompt ai.prompt.messages ai.response.text ai.response.toolCalls ai.response.object ai.values
    ai.toolCall.args ai.toolCall.result ai.embedding ai.telemetry.metadata.note http.request.body http.url url.full
    db.statement db.query.text gen_ai.headers llm.headers traceloop.association.properties.note user.email a.new.name
""".split()
# Of these, the ones whose presence tells that several provider calls hide behind one span; they arrive as "removed".
MARKERS = ["gen_ai.tool.definitions", "llm.tools.0.tool.json_schema"]
USAGE_OBJECTS = ["usage", "gen_ai.usage.raw", "langfuse.observation.usage_details", "metadata.usage_object"]


def list_counted_names() -> set[str]:
    """Every attribute name that decoding looks at."""
    known = yaml.safe_load(VOCABULARY.read_text())
    names = {
        name for group in ("counts", "units", "texts", "flags") for spelled in known[group].values() for name in spelled
    }
    return names | set(known["status_codes"]) | set(known["operation_keys"])


def build_span(texts: dict[str, str], counts: dict[str, int]) -> bytes:
    """One span with these attributes."""
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="call", end_time_unix_nano=1)
    )
    span.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in texts.items())
    span.attributes.extend(KeyValue(key=key, value=AnyValue(int_value=number)) for key, number in counts.items())
    return request.SerializeToString()


@pytest.mark.parametrize("source", ["otlp", "otlp/rated"])
def test_the_collector_accepts_its_configuration(otelcol: Path, tmp_path: Path, source: str) -> None:
    """`otelcol validate` has nothing to say about the file as shipped, in either arrangement."""
    done = subprocess.run(
        [otelcol, "validate", "--config", COLLECTOR_CONFIG],
        env={"OTELCOL_TRACES_FROM": source, "OTELCOL_STORAGE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_allow_list_lets_usage_through_and_no_content(deploy: Deploy) -> None:
    """Every name that decoding reads arrives; none that holds content does, and usage objects lose their texts."""
    counted = list_counted_names()
    usage = json.dumps({"input_tokens": 12, "details": {"cached": 3, "note": CANARY}, "words": [CANARY, 4]})
    texts = dict.fromkeys(CONTENT_NAMES, CANARY) | dict.fromkeys(USAGE_OBJECTS, usage)
    texts["gen_ai.usage.remark"] = f"{CANARY} please tell nobody"
    with open_sink() as sink:
        deployment = deploy(backend=sink.endpoint, rated=False)
        post_until_taken(deployment.otlp_http, build_span(texts, dict.fromkeys(counted, 7)))
        wait_for("the span arrives", 30, sink.find_spans)
        (span,) = sink.find_spans()
        deployment.collector.stop()
    assert CANARY not in str(sink.requests)
    arrived = {attribute.key: attribute.value for attribute in span.attributes}
    assert counted - set(arrived) == set()
    assert {name: arrived[name].string_value for name in set(arrived) & set(CONTENT_NAMES)} == dict.fromkeys(
        MARKERS, "removed"
    )
    for name in USAGE_OBJECTS:
        assert json.loads(arrived[name].string_value) == {
            "input_tokens": 12,
            "details": {"cached": 3, "note": None},
            "words": [None, 4],
        }


def test_the_response_id_of_an_openinference_span_survives(deploy: Deploy) -> None:
    """It stands inside the answer's JSON only, and tells one call seen by two instrumentations from two calls."""
    answer = json.dumps({"id": "chatcmpl-9XyZ", "choices": [{"message": {"content": CANARY}}]})
    with open_sink() as sink:
        deployment = deploy(backend=sink.endpoint, rated=False)
        post_until_taken(deployment.otlp_http, build_span({"output.value": answer}, {}))
        wait_for("the span arrives", 30, sink.find_spans)
        (span,) = sink.find_spans()
        deployment.collector.stop()
    assert {attribute.key: attribute.value.string_value for attribute in span.attributes} == {
        "llm.response.id": "chatcmpl-9XyZ"
    }
