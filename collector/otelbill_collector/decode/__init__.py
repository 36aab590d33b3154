"""From OTLP bytes to usage: wire decoding, the dialect table, selection of billable spans, claims on provider calls."""
