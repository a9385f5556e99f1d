"""The command line `undrift`: the visible list of commands, and how each ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

from cyclopts import App, CycloptsError

from services import cli_device, cli_doctor, cli_epoch, cli_erase, cli_files, cli_jobs, cli_keys, cli_users, client
from services.cli_common import EXIT_CODES, Exit, Instance, Many, Problem, emit, remark, say

app = App(
    name="undrift",
    help=(
        "Undrift keeps folders in step and remembers every step.\n\n"
        "Every command finds its instance by `--data-dir` (the same default as `undrift up`), or by `--url` and "
        "`--token` (or `UNDRIFT_URL` and `UNDRIFT_TOKEN`). With `--json` the answer is one JSON document on stdout; "
        "progress and errors go to stderr."
    ),
    help_epilogue=EXIT_CODES,
    help_format="markdown",
    version=lambda: metadata.version("undrift"),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

# What costs time to import, each command imports when it runs.
app.command(cli_files.app)
app.command(cli_jobs.app)
app.command(cli_device.app)
app.command(cli_users.app)
app.command(cli_keys.app)
app.command(cli_keys.tenants_app)
app.command(cli_doctor.doctor, help_epilogue=cli_doctor.EXIT_CODES)
app.command(cli_doctor.rebuild)
app.command(cli_epoch.app)
app.command(cli_erase.erase)


@app.command(sort_key=0, help_epilogue="Exit codes: 0 ended in order, 1 could not run, 2 a wrong setting.")
def up(
    *,
    data_dir: str | None = None,
    host: str | None = None,
    port: int | None = None,
    root: Annotated[tuple[str, ...], Many] = (),
    config: str | None = None,
) -> int:
    """Start everything on this machine: Postgres, NATS, gateway, core and workers. Ctrl-C ends it.

    Parameters
    ----------
    data_dir
        Where everything is kept; by default `undrift` in the user's data home, or UNDRIFT_DATA_DIR.
    host
        Address to listen on; by default 127.0.0.1 and ::1.
    port
        Port to listen on, 0 for any; by default 8080, and 3001 beside it.
    root
        Folder that requests may touch; may be given several times. One inside the data directory always is.
    config
        File with settings, see `undrift.toml` in the README.
    """
    from infra.config import InvalidSetting
    from services import up as supervisor

    try:
        chosen = supervisor.settings(data_dir, host, port, root, config)
    except InvalidSetting as error:
        raise Problem(Exit.USAGE, str(error)) from None
    return supervisor.up(chosen)


@app.command(sort_key=1)
def status(*, instance: Instance = Instance()) -> Exit:
    """Say whether the instance serves, and how far its read models are."""
    connection = instance.connect()
    about, ready = connection.get("/").body, connection.get("/readyz").body
    processes = {} if instance.address else instance.ready()["processes"]
    if instance.json:
        emit({"url": connection.url, "version": about["version"], **ready, "processes": processes})
        return Exit.OK
    say(f"Undrift {about['version']} serves at {connection.url}")
    say(f"The log ends at position {ready['head']}, the read models are at {ready['applied']}")
    for reason in ready.get("reasons", ()):
        say(f"Degraded: {reason}")
    if processes:
        say("Processes: " + ", ".join(f"{name} {pid}" for name, pid in processes.items()))
    return Exit.OK


_EXITS = {
    400: Exit.USAGE,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    412: Exit.CHANGED,
    413: Exit.USAGE,
    422: Exit.USAGE,
    503: Exit.UNREACHABLE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code. Whatever goes wrong is one sentence on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return int(code or 0)
    except CycloptsError as error:
        return _end(Exit.USAGE, " ".join(str(error).split()), given)
    except Problem as error:
        return _end(error.exit, error.message, given, error.name)
    except client.Refused as error:
        return _end(_EXITS.get(error.status, Exit.FAILED), error.message, given, error.code)
    except client.WrongAddress as error:
        return _end(Exit.USAGE, str(error), given)
    except client.Unreachable as error:
        return _end(Exit.UNREACHABLE, str(error), given)
    except KeyboardInterrupt:
        return _end(Exit.INTERRUPTED, "interrupted", given)
    except BrokenPipeError:  # whoever read our answer has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        if os.environ.get("UNDRIFT_LOG_LEVEL") == "debug":
            raise
        more = "UNDRIFT_LOG_LEVEL=debug shows where"
        return _end(Exit.FAILED, f"unexpected {type(error).__name__}: {error} ({more})", given)


def _end(code: Exit, sentence: str, given: Sequence[str], name: str = "") -> int:
    remark(f"undrift: {sentence}")
    if "--json" in given:
        emit({"error": sentence, "code": name or code.name.lower(), "exitCode": int(code)})
    return int(code)
