"""The storage of OmniQ on PostgreSQL."""
