"""An exporter process that a test kills: `stripe_child.py DATA_DIR STRIPE_URL NOW_NANOS`."""

from __future__ import annotations

import sys
from pathlib import Path

from otelbill_collector.export.stripe.client import open_account
from tests.stripe_world import World, make_settings


def main(folder: str, url: str, now: str) -> None:
    settings = make_settings(api_base=url, meter_api_base=url, batch_max=8)
    world = World(Path(folder), open_account(settings), settings)
    world.now = int(now) + 120 * 10**9
    world.exporter.flush(world.now)
    sys.stdin.read()  # the test ends this process


if __name__ == "__main__":
    main(*sys.argv[1:])
