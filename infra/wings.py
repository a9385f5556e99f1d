"""The real Wings, whose interfaces ours are."""

from __future__ import annotations

VERSION = "1.12.0"
