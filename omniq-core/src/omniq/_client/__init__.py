"""What a program that enqueues tasks holds: the queue and its parts."""
