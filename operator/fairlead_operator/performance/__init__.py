"""How fast an engine is: pure functions of values, without I/O, that import nothing else of the operator."""
