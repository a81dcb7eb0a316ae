"""What vLLM takes: its arguments, its number formats, the hardware that runs them, and what cannot be combined."""
