"""Models in a GGUF file, the format of llama.cpp: read, checked against their own metadata, converted once.

header.py          the file: metadata and tensors
architectures.py   metadata to the configuration of transformers; what is not known by name is refused
tokenizers.py      vocabulary, merges and the file's own rule for parting text, to a tokenizer
convert.py         a model folder in the user's cache, made once for each file and dtype
resolve.py         which file a path means
"""
