"""OTLP over gRPC and HTTP: admission and answers. Handed a callable; knows nothing of the ledger."""
