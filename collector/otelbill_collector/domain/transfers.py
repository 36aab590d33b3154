"""Credits in double entry: transfers between accounts, what should be posted, and the difference to what is.

Owns the accounts and the invariants; `credits` says what was burned. Nothing is ever edited: a correction is a transfer
that names the one it corrects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from otelbill_collector.domain.credits import Burned, EndKind, Place
from otelbill_collector.domain.grants import Grant

ISSUED, EXPIRED, VOIDED = "issued", "expired", "voided"
NOWHERE = Place(0, "", "", "", "")


class UnbalancedTransfer(RuntimeError):
    """A transfer breaks the books. That is a fault of ours, and nothing is written."""


class Kind(StrEnum):
    """What a transfer stands for."""

    GRANT = "grant"
    BURN = "burn"
    EXPIRE = "expire"
    VOID = "void"
    ROLL = "rollover"


class Key(NamedTuple):
    """What transfers are summed by: they are about one flow of one grant. The currency is that of the value."""

    kind: Kind
    grant_id: str
    place: Place
    currency: str = ""


class Flow(NamedTuple):
    """How much goes from one account to another, in the grant's asset; `value_attos` is what it pays of a charge."""

    source: str
    target: str
    asset: str
    amount: int
    value_attos: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """One posting. `amount` is positive; `corrects` is the id of an earlier transfer of the same key."""

    transfer_id: int
    key: Key
    customer_id: str
    flow: Flow
    booked_nanos: int
    corrects: int | None = None

    def list_entries(self) -> tuple[tuple[str, int], ...]:
        """(account, amount) of both sides: they add up to zero."""
        return ((self.flow.source, -self.flow.amount), (self.flow.target, self.flow.amount))


@dataclass(frozen=True, slots=True)
class Posted:
    """What the transfers of one key add up to, and the last of them."""

    flow: Flow
    last_id: int


def name_grant(grant_id: str) -> str:
    """The account of a grant."""
    return f"grant:{grant_id}"


def name_consumed(customer_id: str) -> str:
    """The account of what a customer's usage took."""
    return f"consumed:{customer_id}"


def list_flows(grants: Iterable[Grant], burned: Burned) -> dict[Key, Flow]:
    """Everything that should be posted for one customer."""
    known = {grant.grant_id: grant for grant in (*grants, *burned.successors.values())}
    flows: dict[Key, Flow] = {}
    for grant in known.values():
        if grant.parent_id is None:
            place = NOWHERE._replace(at_nanos=min(grant.start_nanos, grant.given_nanos))
            key = Key(Kind.GRANT, grant.grant_id, place)
            flows[key] = Flow(ISSUED, name_grant(grant.grant_id), grant.asset, grant.amount)
    for item in burned.allocations:
        grant = known[item.grant_id]
        key = Key(Kind.BURN, item.grant_id, item.place, item.currency)
        target = name_consumed(grant.customer_id)
        flows[key] = Flow(name_grant(item.grant_id), target, grant.asset, item.amount, item.value_attos)
    targets = {EndKind.EXPIRE: EXPIRED, EndKind.VOID: VOIDED}
    for ending in burned.endings:
        key = Key(Kind(ending.kind.value), ending.grant_id, NOWHERE._replace(at_nanos=ending.at_nanos))
        target = targets.get(ending.kind) or name_grant(ending.successor_id or "")
        flows[key] = Flow(name_grant(ending.grant_id), target, known[ending.grant_id].asset, ending.amount)
    return flows


def list_transfers(
    wanted: Mapping[Key, Flow], posted: Mapping[Key, Posted], *, customer_id: str, booked_nanos: int, next_id: int
) -> list[Transfer]:
    """The transfers that make what is posted equal to what is wanted. Raises UnbalancedTransfer.

    A part that is too little is added, one that is too much is sent back; each names the last transfer of its key.
    """
    made: list[Transfer] = []
    for key in sorted(wanted.keys() | posted.keys()):
        before = posted.get(key)
        for flow in _list_steps(wanted.get(key), before):
            corrects = None if before is None else before.last_id
            transfer = Transfer(next_id + len(made), key, customer_id, flow, booked_nanos, corrects)
            require_balanced(transfer)
            made.append(transfer)
    return made


def _list_steps(wanted: Flow | None, posted: Posted | None) -> list[Flow]:
    before = None if posted is None or not (posted.flow.amount or posted.flow.value_attos) else posted.flow
    if wanted is None or before is None:
        return [flow for flow in (wanted, before and _turn(before)) if flow is not None]
    amount, value = wanted.amount - before.amount, wanted.value_attos - before.value_attos
    if not amount and not value:
        return []
    if wanted[:3] == before[:3] and amount > 0 and value >= 0:
        return [wanted._replace(amount=amount, value_attos=value)]
    if wanted[:3] == before[:3] and amount < 0 and value <= 0:
        return [_turn(wanted._replace(amount=-amount, value_attos=-value))]
    return [_turn(before), wanted]


def _turn(flow: Flow) -> Flow:
    return flow._replace(source=flow.target, target=flow.source)


def require_balanced(transfer: Transfer) -> None:
    """Raises UnbalancedTransfer unless the entries add up to zero, between accounts that the kind allows."""
    problem = find_imbalance(transfer)
    if problem is not None:
        raise UnbalancedTransfer(f"transfer {transfer.transfer_id} of {transfer.key.grant_id}: {problem}")


def find_imbalance(transfer: Transfer) -> str | None:
    """What is wrong with one transfer by itself; None for a sound one."""
    flow, key = transfer.flow, transfer.key
    if sum(amount for _, amount in transfer.list_entries()):
        return "its entries do not add up to zero"
    if flow.amount <= 0 or flow.value_attos < 0:
        return "moves nothing, or less"
    own = name_grant(key.grant_id)
    if own not in (flow.source, flow.target):
        return f"does not touch {own}"
    other = flow.target if flow.source == own else flow.source
    allowed = {
        Kind.GRANT: ISSUED,
        Kind.BURN: name_consumed(transfer.customer_id),
        Kind.EXPIRE: EXPIRED,
        Kind.VOID: VOIDED,
    }.get(key.kind)
    if other != allowed and not (allowed is None and other.startswith("grant:") and other != own):
        return f"a {key.kind.value} is not between {own} and {other}"
    return None


def sum_posted(transfers: Iterable[Transfer]) -> dict[Key, Posted]:
    """What transfers add up to by key, in the direction of the first one of each."""
    found: dict[Key, Posted] = {}
    for item in sorted(transfers, key=lambda item: item.transfer_id):
        before = found.get(item.key)
        if before is None or not before.flow.amount:
            found[item.key] = Posted(item.flow, item.transfer_id)
            continue
        sign = 1 if item.flow.source == before.flow.source else -1
        amount = before.flow.amount + sign * item.flow.amount
        value = before.flow.value_attos + sign * item.flow.value_attos
        found[item.key] = Posted(before.flow._replace(amount=amount, value_attos=value), item.transfer_id)
    return found


def sum_accounts(transfers: Iterable[Transfer]) -> dict[tuple[str, str], int]:
    """(account, asset) -> balance. All accounts of one asset add up to zero."""
    sums: dict[tuple[str, str], int] = {}
    for item in transfers:
        for account, amount in item.list_entries():
            key = (account, item.flow.asset)
            sums[key] = sums.get(key, 0) + amount
    return sums
