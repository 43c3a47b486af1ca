"""grace-small: how the adapter that ships is made, from its training data to its release."""
