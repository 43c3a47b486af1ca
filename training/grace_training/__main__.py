"""`python -m grace_training RECIPE`: the same as `grace train`, for `accelerate launch -m grace_training RECIPE`."""

from __future__ import annotations

import typer

from grace_training.cli import train

if __name__ == "__main__":
    typer.run(train)
