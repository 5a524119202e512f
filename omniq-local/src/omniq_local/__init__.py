"""OmniQ's storages for one machine: memory, SQLite and files. Importing this package imports none of them."""
