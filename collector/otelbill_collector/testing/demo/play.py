"""The demo itself, start to end: local provider, local Stripe, the real sidecar, the agent, sending, comparing.

Owns the order and that everything started is ended again; does not own how progress looks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from otelbill_collector.testing.demo.audit import collect_findings, count_answered
from otelbill_collector.testing.demo.configuration import CUSTOMERS, render_config
from otelbill_collector.testing.demo.findings import Findings
from otelbill_collector.testing.demo.programs import Program, ProgramFailed, await_condition, start_python
from otelbill_collector.testing.demo.sidecar import SidecarProcess, find_ports
from otelbill_collector.testing.provider import ProviderServer
from otelbill_collector.testing.stripe_server import StripeServer

CONFIG_FILE = "otelbill.yaml"
STRIPE_LOG = "stripe.jsonl"
_AGENT_SECONDS = 90.0
_SETTLE_SECONDS = 15.0
_CHECKOUT = Path(__file__).resolve().parents[4]


class Step(Protocol):
    """One line of progress."""

    def show(self, detail: str, *, done: int = 0, total: int = 0) -> None:
        """What is known now, and how far the step is where that is known."""


class Reporter(Protocol):
    """Where progress goes. A step ends with its block; an exception inside marks it as failed."""

    def open_step(self, title: str) -> AbstractContextManager[Step]:
        """Begin a step."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs during the demo, all on loopback."""

    provider: ProviderServer
    stripe: StripeServer
    sidecar: SidecarProcess
    folder: Path


def find_example(name: str) -> Path:
    """A file of examples/ in the checkout this package runs from. Raises FileNotFoundError, with the remedy."""
    path = _CHECKOUT / "examples" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"the demo runs examples/{name}, which is in the source checkout and not in the installed package; "
            "clone the repository and run `make demo` in it"
        )
    return path


def play(folder: Path, agent: Path, reporter: Reporter) -> Findings:
    """Run everything with `folder` as the ledger. Raises ProgramFailed; nothing is left running in any case."""
    with ExitStack() as stack:
        stage = _set_stage(folder, reporter, stack)
        with reporter.open_step("Stripe objects") as step:
            for stripe_id in CUSTOMERS.values():
                stage.stripe.add_customer(stripe_id)
            created = stage.sidecar.operate("stripe-apply")["items"]
            names = " and ".join(f"{item['kind']} {item['key']}" for item in created)
            step.show(f"{len(CUSTOMERS)} customers; {names}")
        _run_agent(stage, agent, reporter)
        with reporter.open_step("Send to Stripe") as step:
            sent = stage.sidecar.operate("stripe-flush")
            step.show(f"{sent['sent']} meter events sent: {_describe_outcomes(sent['outcomes'])}")
        with reporter.open_step("Reconcile") as step:
            reconciliation = _reconcile(stage.sidecar)
            findings = collect_findings(stage.sidecar, stage.provider.tally, reconciliation, CUSTOMERS)
            step.show(f"{sum(findings.checks.values())} of {len(findings.checks)} checks hold")
    return findings


def _set_stage(folder: Path, reporter: Reporter, stack: ExitStack) -> Stage:
    with reporter.open_step("Local provider and local Stripe") as step:
        provider = stack.enter_context(ProviderServer())
        stripe = stack.enter_context(StripeServer(state=folder / STRIPE_LOG))
        step.show(f"{provider.base_url} and {stripe.base_url}")
    with reporter.open_step("Sidecar") as step:
        ports = find_ports()
        config = folder / CONFIG_FILE
        config.write_text(render_config(folder, ports, stripe.base_url))
        sidecar = stack.enter_context(SidecarProcess(config, ports, folder))
        step.show(f"OTLP on {sidecar.endpoint}, API on http://127.0.0.1:{ports.api}")
    return Stage(provider, stripe, sidecar, folder)


def _run_agent(stage: Stage, agent: Path, reporter: Reporter) -> None:
    given = {
        "OPENAI_BASE_URL": stage.provider.openai_base_url,
        "OPENAI_API_KEY": "demo",
        "OTELBILL_ENDPOINT": stage.sidecar.endpoint,
    }
    with reporter.open_step(f"{agent.parent.name}/{agent.name}") as step:
        with start_python([str(agent)], log=stage.folder / "agent.log", given=given) as program:
            program.await_success(_AGENT_SECONDS, lambda: _show_agent(stage, program, step))
        settled = await_condition(lambda: _count_events(stage) >= count_answered(stage.provider.tally), _SETTLE_SECONDS)
        _show_agent(stage, program, step)
    if not settled:
        answered = count_answered(stage.provider.tally)
        raise ProgramFailed(
            f"the provider answered {answered} calls, {_count_events(stage)} are in the ledger; "
            f"see {stage.folder / 'agent.log'} and {stage.folder / 'sidecar.log'}"
        )


def _show_agent(stage: Stage, program: Program, step: Step) -> None:
    answered = count_answered(stage.provider.tally)
    lines = program.read_lines()
    done = sum(line.endswith("answered") for line in lines)
    total = int(lines[0].split()[0]) if lines and lines[0][:1].isdigit() else 0
    detail = f"{done} questions, {answered} calls answered, {_count_events(stage)} in the ledger"
    step.show(detail, done=done, total=total)


def _count_events(stage: Stage) -> int:
    """Model calls in the ledger, held ones too."""
    rows = stage.sidecar.fetch("/v1/usage", {"by": "model"})
    return sum(row["events"] for row in rows if row["model"] is not None)


def _reconcile(sidecar: SidecarProcess) -> dict[str, Any]:
    """The comparison; asked again for a while, as Stripe may still be adding up."""
    answers: list[dict[str, Any]] = []

    def is_equal() -> bool:
        answers.append(sidecar.operate("reconcile"))
        return bool(answers[-1]["equal"])

    await_condition(is_equal, _SETTLE_SECONDS)
    return answers[-1]


def _describe_outcomes(outcomes: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in outcomes.items()) or "nothing to send"
