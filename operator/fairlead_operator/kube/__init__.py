"""Kubernetes: one session, reflectors, the work queue, the Lease, Events."""
