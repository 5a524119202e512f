"""OmniQ's storages for one machine: memory and SQLite. Importing this package imports neither."""
