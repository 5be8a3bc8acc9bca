"""Time: what happens when audio arrives. Knows no socket, no file and no wire format."""
