"""The otelbill sidecar: OTLP in, rated usage records, an append-only ledger, Stripe meter events out.

Read `pipeline` first: it holds the path of one span in one function.
"""
