"""Benchmarks of grace-retrieval. Each module is a program: `python -m grace_benchmarks.engine --help`.

Every result is a JSON file with the command, commit, versions, hardware and seeds that gave it; ratios are taken in one
run, because absolute times depend on the machine.
"""
