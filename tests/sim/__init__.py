"""A deterministic simulation: the real client, runner and provider handlers in virtual time, by seed."""
