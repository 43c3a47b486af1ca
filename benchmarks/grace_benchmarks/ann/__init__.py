"""Approximate nearest neighbours: any matrix of vectors x FAISS factories x search parameters."""
