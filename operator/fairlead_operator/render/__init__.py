"""What is applied and served: pure functions from the kinds to Kubernetes objects and router configuration."""
