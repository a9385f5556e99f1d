"""HTTP: commands, queries, feeds, streams."""
