"""From rows to a page, pictures and the tables of README and docs."""
