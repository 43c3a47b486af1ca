"""A reader for each format: a function from a file to its rows. `grace_retrieval.corpus.formats` lists them."""
