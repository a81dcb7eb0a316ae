"""Statuses: pure functions from facts to conditions, columns and Events, with their words."""
