"""The operator and the ledger of Fairlead."""
