"""A reader for each format of vectors and of neighbours. `grace_retrieval.corpus.vectors` lists them."""
