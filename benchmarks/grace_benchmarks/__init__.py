"""Benchmarks of grace-retrieval: `grace bench` (indexes, retrieval, encoding, report), and programs for single figures.

Every result holds the command, commit, versions, hardware and seeds that gave it; ratios are taken in one run, because
absolute times depend on the machine.
"""
