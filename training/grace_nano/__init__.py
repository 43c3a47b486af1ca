"""Making of grace-nano-base, the small language model that the shipped grace-nano is trained from."""
