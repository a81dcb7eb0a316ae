"""Decisions: pure functions from facts to values with reasons. No clock, no I/O, no logging."""
