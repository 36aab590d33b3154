"""`python -m otelbill_collector.cli` is `otelbill`."""

from otelbill_collector.cli import main

main()
