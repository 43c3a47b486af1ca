"""Retrieval quality and its price: collections x models x ways of embedding, against BM25."""
