"""A fleet of vLLM replicas under a day's requests, simulated step by step, to compare autoscaling policies."""
