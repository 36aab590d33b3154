"""The append-only ledger. The only package that contains SQL."""
