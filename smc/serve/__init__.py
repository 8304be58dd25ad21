"""Serving artifacts over HTTP: one scheduler per model that batches the texts of all clients."""
