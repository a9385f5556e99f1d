"""The node process: what the Panel wants of the servers of this machine, carried out."""

from __future__ import annotations

import sys

from services import main
from services.node import role

if __name__ == "__main__":
    role.hear_farewell()
    sys.exit(main.main("node", lambda _: {"runtime": role.run}))
