"""Scenarios: a machine's beginning and a list of ops, as text, as records and as a builder."""
