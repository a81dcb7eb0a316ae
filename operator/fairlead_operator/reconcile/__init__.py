"""One module for each kind: gather, decide, act."""
