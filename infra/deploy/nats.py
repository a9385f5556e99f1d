"""Starts a NATS node in its container: tells it the public key of who signs for consumers, and becomes it.

`python -m infra.deploy.nats [FILE]`; ISSUER_PASSWORD is the secret of who signs, and does not reach the server.
"""

from __future__ import annotations

import os
import sys

from infra import callout, embedded

CONFIGURATION = "/etc/undrift/nats.conf"


def main() -> None:
    environment = dict(os.environ)
    environment["ISSUER"] = callout.Issuer(environment.pop("ISSUER_PASSWORD")).public
    program, [file] = str(embedded.nats_server()), sys.argv[1:] or [CONFIGURATION]
    os.execve(program, [program, "-c", file], environment)  # noqa: S606  the server takes our place


if __name__ == "__main__":
    main()
