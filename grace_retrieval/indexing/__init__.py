"""Offline indexing: which index to build."""
