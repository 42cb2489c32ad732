"""Checks an account: connection, rights, and what earlier deliveries show. Bills nothing without a yes."""
