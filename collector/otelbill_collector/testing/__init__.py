"""Local stand-ins for the LLM provider and for Stripe. Used by the demo as well as by the tests."""
