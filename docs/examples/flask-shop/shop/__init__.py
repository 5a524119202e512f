"""A shop: a Flask application that takes orders, and a worker that carries them out."""
