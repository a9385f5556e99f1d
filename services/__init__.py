"""Processes, and what they do."""

from infra import lean

lean.begin()  # before anybody loads anything
