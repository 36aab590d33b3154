"""Parts of the local Stripe: forms, store, rules of each resource, faults, oracle. `stripe_server` is the entry."""
