"""Stripe meter events: windows, intents, delivery, reconciliation."""
