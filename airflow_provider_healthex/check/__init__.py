"""Prove an account: connection, rights, and what the earlier deliveries in its store show. Bills nothing unasked."""
