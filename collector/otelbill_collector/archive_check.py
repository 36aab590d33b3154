"""Checks an archive of `otelbill export` with nothing but Python: `python check.py [FOLDER]`.

Owns a second, slow computation of every line, from the records up, with fractions; shares no code with otelbill.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import sys
from collections import defaultdict
from datetime import datetime, timezone
from fractions import Fraction
from math import floor
from pathlib import Path

ATTOS = 10**18
MICROS = 10**6
PARTS = {
    "cache_write_1h_tokens": "cache_write_tokens",
    "audio_input_tokens": "input_tokens",
    "audio_output_tokens": "output_tokens",
    "reasoning_tokens": "output_tokens",
}
NAMES = ("label", "project", "step", "provider", "model", "unit", "price_version")


class Checker:
    """Everything in the archive, and what is wrong with it."""

    def __init__(self, folder):
        """Read the files of an unpacked archive."""
        self.folder = folder
        self.problems = []
        self.text = self.read("invoice.json")
        self.invoice = json.loads(self.text)
        self.id = json.loads(self.read("about.json"))["invoice_id"]
        self.earlier = json.loads(self.read("earlier_invoices.json"))
        self.versions = json.loads(self.read("price_versions.json"))
        self.records = [json.loads(line) for line in self.read("records.jsonl").splitlines()]
        self.lines = self.invoice["lines"]

    def read(self, name):
        """Text of a file."""
        return (self.folder / name).read_text(encoding="utf-8")

    def expect(self, what, found, wanted):
        """Note a difference."""
        if found != wanted:
            self.problems.append(f"{what}: is {found}, should be {wanted}")

    def run(self):
        """All checks; returns the problems."""
        self.check_files()
        self.check_ids()
        self.check_rounding()
        self.check_records()
        for start in dict.fromkeys(line["period_from"] for line in self.lines):
            self.check_period(start)
        self.check_credits()
        return self.problems

    def check_credits(self):
        """All lines of credit so far are what the grants pay of usage, in their order, and of what no event carries."""
        told = json.loads(self.read("credits.json"))
        if told["usage"] is None:
            return
        tools = runpy.run_path(str(self.folder / "credits.py"))
        earlier = [json.loads(text) for text in self.earlier.values()]
        ends = {to_nanos(end): amount for end, amount in tools["sum_charges"]([*earlier, self.invoice]).items()}
        demands = tools["list_demands"](told["usage"], ends)
        periods = {(line["period_from"], line["period_to"]) for line in [*self.list_earlier_lines(), *self.lines]}
        for start, end in sorted(periods):
            low, high = to_nanos(start), to_nanos(end)
            if told["grants"]:
                self.check_usage(low, high, told["usage"])
            wanted = defaultdict(Fraction)
            for (grant, quarter), value in tools["burn"](
                told["grants"], demands, self.invoice["currency"], high
            ).items():
                wanted[grant] -= value if quarter >= low else 0
            found = defaultdict(Fraction)
            for line in [*self.list_earlier_lines(), *self.lines]:
                if line["kind"] == "credit" and line["period_from"] == start:
                    found[line["label"].split(":")[0].split()[1]] += Fraction(line["exact"])
            for grant in {*wanted, *found}:
                self.expect(f"credit of {start} from {grant}", found[grant], wanted[grant])

    def check_usage(self, low, high, usage):
        """What credits are asked to pay for in a period of this invoice is what its records were charged."""
        if low not in {to_nanos(line["period_from"]) for line in self.lines}:
            return
        asked = sum(Fraction(row[-1]) for row in usage if low <= row[0] < high)
        charged = Fraction(0)
        for record in self.records:
            own = record["rating"] == "rated" and record["customer_id"] == self.invoice["customer_id"]
            if own and low <= to_nanos(record["ended_at"]) < high:
                charged += Fraction(record["charge"]) * (-1 if record["kind"] == "reversal" else 1)
        self.expect(f"usage that credits see of the period that ends at {high}", asked, charged)

    def check_files(self):
        """Every file is the one that was packed."""
        for entry in self.read("MANIFEST.sha256").splitlines():
            wanted, name = entry.split("  ")
            found = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            self.expect(f"SHA-256 of {name}", found, wanted)

    def check_ids(self):
        """Ids are digests of what they name."""
        self.expect("invoice id", f"inv1.{digest('invoice', self.text)[:24]}", self.id)
        for invoice_id, text in self.earlier.items():
            self.expect("earlier invoice id", f"inv1.{digest('invoice', text)[:24]}", invoice_id)
        self.expect("earlier invoices", sorted(self.earlier), sorted(self.invoice["after"]))
        for version, text in self.versions.items():
            self.expect("price version id", digest("price", text)[:16], version)
        own = self.invoice["from_nanos"]
        for line in self.lines:
            places = (self.invoice["customer_id"], own, to_nanos(line["period_from"]), line["kind"])
            names = [line[name] or "" for name in NAMES]
            numbers = (line["quantity"] or "", Fraction(line["exact"]) * ATTOS)
            self.expect("line id", f"line1.{digest('line', *places, *names, *numbers)[:24]}", line["line_id"])

    def check_rounding(self):
        """The total is rounded half up, every line down, and what is missing goes to the largest remainders."""
        unit = Fraction(1, 10 ** self.invoice["digits"])
        exact = [Fraction(line["exact"]) for line in self.lines]
        amounts = [floor(amount / unit) for amount in exact]
        total = floor(sum(exact) / unit + Fraction(1, 2))
        order = sorted(range(len(exact)), key=lambda index: (amounts[index] * unit - exact[index], index))
        for index in order[: total - sum(amounts)]:
            amounts[index] += 1
        for line, amount in zip(self.lines, amounts):  # noqa: B905 the two are made of the same list
            self.expect(f"rounded {line['line_id']}", Fraction(line["amount"]), amount * unit)
        self.expect("total", Fraction(self.invoice["total"]), total * unit)
        self.expect("exact total", Fraction(self.invoice["exact_total"]), sum(exact))

    def check_records(self):
        """Each record's charge is quantity x price, by the version that it names. A charge given by hand names none."""
        for record in self.records:
            if record["rating"] == "rated" and record["price_version"]:
                parts = self.list_parts(record["price_version"], record["quantities"])
                charge = sum(count * Fraction(price["charge"]) for _, count, price in parts if is_priced(price))
                self.expect(f"charge of record {record['record_id']}", Fraction(record["charge"]), charge)

    def list_parts(self, version, quantities):
        """(unit, quantity, price) of each priced unit; what is priced by itself leaves its whole."""
        prices = json.loads(self.versions[version])["prices"]
        for unit, price in prices.items():
            parts = [part for part, whole in PARTS.items() if whole == unit and part in prices]
            count = Fraction(quantities.get(unit, 0)) - sum(Fraction(quantities.get(part, 0)) for part in parts)
            if count:
                yield unit, count, price

    def check_period(self, start):
        """Everything invoiced for a period so far, this invoice included, is what its records and terms come to."""
        invoiced = defaultdict(lambda: [Fraction(0), Fraction(0)])
        for line in [line for line in self.list_earlier_lines() if line["period_from"] == start] + [
            line for line in self.lines if line["period_from"] == start
        ]:
            if line["kind"] != "credit":
                total = invoiced[self.find_key(line)]
                total[0] += Fraction(line["quantity"] or 0)
                total[1] += Fraction(line["exact"])
        stated = self.state_period(start)
        for key in dict.fromkeys([*invoiced, *stated]):
            found, wanted = invoiced.get(key, [0, 0]), stated.get(key, [0, 0])
            self.expect(f"quantity of {start} {key}", found[0], wanted[0])
            self.expect(f"amount of {start} {key}", found[1], wanted[1])

    def list_earlier_lines(self):
        """Lines of the invoices before this one."""
        return [line for text in self.earlier.values() for line in json.loads(text)["lines"]]

    def find_key(self, line):
        """What lines are added up by: period charges by their version, everything else by all its names."""
        if line["kind"] == "charge":
            return ("charge", line["price_version"])
        return (line["kind"], *(line[name] or "" for name in NAMES))

    def state_period(self, start):
        """key -> [quantity, amount] of a period, from its records and terms."""
        statement = defaultdict(lambda: [Fraction(0), Fraction(0)])
        counted = defaultdict(Fraction)
        for names, (charge, quantities) in self.group_records(start).items():
            version = names[-1]
            parts = list(self.list_parts(version, quantities)) if version else []
            priced = [part for part in parts if is_priced(part[2])]
            amounts = [count * Fraction(price["charge"]) for _, count, price in priced]
            for _, count, price in parts:
                if price["charge"] == "period":
                    counted[price["entry"]["period_charge"]["version"]] += count
            if sum(amounts) == charge:
                for (unit, count, _), amount in zip(priced, amounts):  # noqa: B905 the two are made of the same list
                    add(statement, ("usage", "", *names[:4], unit, version), count, amount)
            else:
                add(statement, ("usage", "amounts of events", *names[:4], "", version), 0, charge)
        for version, count, amount in price_charges(self.versions, counted):
            add(statement, ("charge", version), count, amount)
        self.apply_terms(start, statement)
        return {key: numbers for key, numbers in statement.items() if any(numbers)}

    def group_records(self, start):
        """(project, step, provider, model, version) -> [charge, quantities] of the rated records of a period."""
        end = next(line["period_to"] for line in self.lines if line["period_from"] == start)
        groups = defaultdict(lambda: [Fraction(0), defaultdict(Fraction)])
        for record in self.records:
            inside = to_nanos(start) <= to_nanos(record["ended_at"]) < to_nanos(end)
            if not inside or record["rating"] != "rated" or record["customer_id"] != self.invoice["customer_id"]:
                continue
            sign = -1 if record["kind"] == "reversal" else 1
            names = ("project_id", "step", "provider", "model", "price_version")
            group = groups[tuple(record[name] or "" for name in names)]
            group[0] += sign * Fraction(record["charge"])
            for unit, count in record["quantities"].items():
                group[1][unit] += sign * Fraction(count)
        return groups

    def apply_terms(self, start, statement):
        """Fees, discounts, minimums, commitments, in this order."""
        own = start == self.invoice["from"]
        closing = [json.loads(text) for text in self.earlier.values()]
        closing = self.invoice.get("restated", []) + closing  # terms that were corrected after the closing
        terms = next(item["terms"] for item in ([self.invoice] if own else closing) if item["from"] == start)
        for term in [term for term in terms if term["section"] == "fee"]:
            add(statement, key_of(term), 0, Fraction(term["amount"]) * Fraction(term["share"]))
        full = dict(statement.items())
        full = {key: list(numbers) for key, numbers in full.items()}
        left = sum(numbers[1] for numbers in full.values())
        for term in [term for term in terms if term["section"] == "discount"]:
            base = sum(numbers[1] for key, numbers in full.items() if is_discounted(term, key))
            taken = min(base * Fraction(term["percent"]) / 100, left)
            left -= taken
            add(statement, key_of(term), 0, -taken)
        for term in [term for term in terms if term["section"] == "minimum"]:
            missing = Fraction(term["amount"]) - sum(numbers[1] for numbers in statement.values())
            add(statement, key_of(term), 0, max(missing, Fraction(0)))
        spent = sum(numbers[1] for numbers in statement.values())
        for term in [term for term in terms if term["section"] == "commitment"]:
            missing = Fraction(term["amount"]) - spent - self.count_spent(term, start)
            add(statement, key_of(term), 0, max(missing, Fraction(0)))

    def count_spent(self, term, start):
        """What the earlier periods of a commitment's term came to."""
        low = -(2**62) if term["from"] is None else to_nanos(term["from"])
        total = Fraction(0)
        for line in [*self.list_earlier_lines(), *self.lines]:
            begins = to_nanos(line["period_from"])
            counts = low <= begins < min(to_nanos(term["to"]), to_nanos(start))
            if counts and line["kind"] not in ("commitment", "credit"):
                total += Fraction(line["exact"])
        return total


def digest(kind, *parts):
    """SHA-256 in hex over a kind and length-prefixed parts."""
    hasher = hashlib.sha256(f"otelbill.{kind}.v1".encode())
    for part in parts:
        raw = str(part).encode()
        hasher.update(len(raw).to_bytes(8, "big") + raw)
    return hasher.hexdigest()


def to_nanos(text):
    """Nanoseconds of an RFC 3339 time in UTC."""
    seconds, fraction = re.fullmatch(r"([^.Z]+)(?:\.(\d+))?Z", text).groups()
    moment = datetime.fromisoformat(seconds).replace(tzinfo=timezone.utc)  # noqa: UP017 older Pythons, too
    since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017
    return (since.days * 86_400 + since.seconds) * 10**9 + int((fraction or "0").ljust(9, "0"))


def is_priced(price):
    """Whether a unit is priced by event."""
    return price["charge"] not in (None, "period")


def key_of(term):
    """The key of a term's line."""
    return (term["section"], term["name"], "", "", "", "", "", term["version"])


def add(statement, key, quantity, amount):
    """Add to a line."""
    statement[key][0] += quantity
    statement[key][1] += amount


def is_discounted(term, key):
    """Whether a discount is given on a line. One that names usage is given on usage priced by event only."""
    if not term["usage"]:
        return True
    if key[0] != "usage":
        return False
    found = {"step": key[3], "provider": key[4], "model": key[5]}
    return all(matches(wanted, found[name]) for name, wanted in term["usage"].items())


def matches(pattern, name):
    """Names compare without regard to case; `*` stands for any characters."""
    return re.fullmatch(re.escape(pattern.lower()).replace(r"\*", ".*"), name.lower()) is not None


def price_charges(versions, counted):
    """(version, quantity, amount) of each version of each period charge, of what it counts."""
    charges = {version: json.loads(versions[version])["charge"] for version in counted}
    for name in sorted({(charge["name"], charge["unit"]) for charge in charges.values()}):
        parts = [version for version, charge in charges.items() if (charge["name"], charge["unit"]) == name]
        parts.sort(key=lambda version: (to_nanos(charges[version].get("from", "1970-01-01T00:00:00Z")), version))
        whole, position = sum(counted[version] for version in parts), Fraction(0)
        for version in parts:
            free = charges[version].get("included", 0)
            start, end = max(position - free, 0), max(position + counted[version] - free, 0)
            amount = price_span(charges[version], start, end, max(whole - free, 0)) if end > start else Fraction(0)
            yield version, counted[version], amount
            position += counted[version]


def price_span(charge, start, end, total):
    """The amount of the units from `start` to `end` of a period that has `total`, after what is included."""
    if charge["pricing"] == "per_unit":
        return (end - start) * Fraction(charge["price"])
    if charge["pricing"] == "package":
        return (count_packages(charge, end) - count_packages(charge, start)) * Fraction(charge["price"])
    tiers, low = [], Fraction(0)
    for tier in charge["tiers"]:
        high = None if tier["up_to"] is None else Fraction(tier["up_to"])
        tiers.append((low, high, Fraction(tier["price"]), Fraction(tier["flat"])))
        low = high
    if charge["pricing"] == "graduated":
        amount = Fraction(0)
        for low, high, price, flat in tiers:
            first, last = max(start, low), end if high is None else min(end, high)
            if first < last:
                amount += (last - first) * price + (flat if first == low else 0)
        return amount
    _, _, price, flat = next(tier for tier in tiers if tier[1] is None or total <= tier[1])
    share = Fraction(floor(flat * ATTOS * end / total) - floor(flat * ATTOS * start / total), ATTOS)
    return share + ((end - start) * price if charge["pricing"] == "volume" else 0)


def count_packages(charge, units):
    """Whole packages of so many units."""
    size = charge["package_size"]
    extra = {"up": size - Fraction(1, MICROS), "down": 0, "nearest": Fraction(size, 2)}[charge["rounding"]]
    return floor((units + extra) / size)


def main(arguments):
    """Check the folder that is named, or the one that this file is in."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parent
    try:
        checker = Checker(folder)
        problems = checker.run()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, IndexError) as error:
        problems = [f"the archive cannot be read: {type(error).__name__}: {error}"]
    for problem in problems:
        sys.stdout.write(problem + "\n")
    if problems:
        return 1
    untold = json.loads(checker.read("credits.json"))["usage"] is None
    credits = sum(line["kind"] == "credit" for line in checker.lines) if untold else 0
    sys.stdout.write(
        f"{checker.id}: {len(checker.lines)} lines over {len(checker.records)} records add up to "
        f"{checker.invoice['total']} {checker.invoice['currency']}"
        + (f"; {credits} lines of credit are taken as they are" if credits else "")
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
