"""The part that does I/O: HTTP, JSON-RPC, transactions, logs."""
