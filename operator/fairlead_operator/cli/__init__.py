"""The command line: reads and explains, with no power of its own."""
