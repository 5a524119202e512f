"""An example of a store for OmniQ."""
