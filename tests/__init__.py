"""The tests: one folder or file a room. Knows every room, and no other machine."""
