"""The process for SFTP to the files of servers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from infra import config, configfile
from services import main
from services.main import Role
from services.sftp import role


def roles(arguments: argparse.Namespace) -> Mapping[str, Role]:
    """Raises config.InvalidSetting where there is nobody to ask who may come in."""
    settings = configfile.load(arguments.config)
    if not settings.panel.url:
        raise config.InvalidSetting("panel.url (UNDRIFT_PANEL_URL) is needed: the Panel says who may use SFTP")
    return {"sftp": role.run}


if __name__ == "__main__":
    sys.exit(main.main("sftp", roles, clients=True))
