"""The router: Fairlead's data plane."""
