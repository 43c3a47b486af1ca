"""Corpora: files of texts and documents, read by one set of rules wherever texts come in."""
