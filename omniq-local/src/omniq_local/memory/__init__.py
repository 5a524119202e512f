"""The memory storage: tasks that live and end with this process."""
