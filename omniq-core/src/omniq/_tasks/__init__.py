"""What a task is in code: its function, options, payload, handle and context."""
