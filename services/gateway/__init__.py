"""HTTP: commands, queries, feeds, streams."""

from infra import lean

lean.load()  # before anybody else loads what it loads
