"""The ledger: budgets, leases, usage, rate cards and costs behind one HTTP service on one database."""
