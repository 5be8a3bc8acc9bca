"""The adaptive-lookahead transducer: a causal Whisper trunk, and layers that learn when to wait for more."""
