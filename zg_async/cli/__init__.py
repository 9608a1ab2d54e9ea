"""The command line: parses, calls one manager or runner method, renders. No logic of its own."""
