"""The storage of OmniQ on Redis or Valkey."""
