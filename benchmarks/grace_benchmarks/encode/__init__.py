"""Throughput of encoding: rationale budgets x batch budgets x cache states, beside the straightforward pipeline."""
