"""The kinds of fairlead.dev: what the CRDs are generated from, and what the code reads objects with."""
