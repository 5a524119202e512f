"""A shop: a web application that takes orders, and a worker that carries them out."""
