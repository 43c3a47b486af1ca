"""Training of policies, and the making of the model that the library ships."""
