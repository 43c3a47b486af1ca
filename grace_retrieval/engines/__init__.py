"""Engines: ways to run a policy. The default is transformers; vLLM is an extra."""
