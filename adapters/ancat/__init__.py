"""How the adaptive-lookahead transducer is taught: corpus, losses, policies, trunk, head."""
