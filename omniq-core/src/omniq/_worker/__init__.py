"""What claims tasks, runs them and records how they ended."""
