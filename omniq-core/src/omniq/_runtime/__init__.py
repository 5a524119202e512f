"""Event loops, threads and connections, for producers and workers alike."""
