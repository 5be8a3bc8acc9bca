"""Weights that we add, and how they are learnt. Knows no stream and no server."""
