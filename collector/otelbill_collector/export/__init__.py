"""What leaves the sidecar: Stripe meter events, OTLP with cost, metrics. No SQL here."""
