"""`python -m grace_retrieval.cli` is the command `grace`."""

from __future__ import annotations

from grace_retrieval.cli import main

if __name__ == "__main__":
    main()
