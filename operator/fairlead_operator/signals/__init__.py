"""What the routers report."""
