"""The sidecar's JSON API and pages. Reads through the ledger's read models only."""
