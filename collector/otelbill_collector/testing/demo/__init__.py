"""The demo's stage and play: programs on free loopback ports, one agent run, and the checks on what became of it."""
