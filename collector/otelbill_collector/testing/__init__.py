"""Local stand-ins for the LLM provider and for Stripe. Used by the demo as well as by the tests.

`provider` and `stripe_server` are the entries, as Python API and as programs (`python -m`); both speak to the real
client libraries, and each knows the truth that a bill is compared with: the provider's tally, Stripe's oracle.
"""
