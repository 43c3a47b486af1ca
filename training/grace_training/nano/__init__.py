"""Making of grace-nano, the small language model that the library ships."""
