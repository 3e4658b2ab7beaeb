"""Runs and loads that fail within the engine, as `--rehearsal` makes them."""
