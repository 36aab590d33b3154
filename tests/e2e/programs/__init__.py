"""Other people's programs for the end-to-end tests. Owns the pins, the builds and their cache; starts nothing."""
