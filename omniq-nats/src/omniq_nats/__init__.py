"""The storage of OmniQ on NATS JetStream."""
