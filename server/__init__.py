"""Bytes to and from the world: sockets, wire protocols, the thread that owns the model, and the client."""
