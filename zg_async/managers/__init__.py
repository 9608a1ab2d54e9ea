"""One method, one thing a user wants."""
