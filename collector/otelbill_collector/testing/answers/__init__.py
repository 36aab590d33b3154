"""What the demo provider says: a plan per request, rendered in each provider's own JSON. Knows no sockets, no tally."""
