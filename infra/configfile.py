"""Settings out of a file, the environment and a command line, in this order; a wrong one is named."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from infra.config import IntegrationDeclared, InvalidSetting, Settings

#: Names without a section that mean something to a command line rather than to `Settings`.
PLAIN = ("UNDRIFT_CONFIG", "UNDRIFT_URL", "UNDRIFT_TOKEN", "UNDRIFT_READY_FD", "UNDRIFT_BEAT_FILE")


def default_data_dir() -> Path:
    """`$UNDRIFT_DATA_DIR`, else `undrift` under the user's data home."""
    if given := os.environ.get("UNDRIFT_DATA_DIR"):
        return Path(given)
    home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(home) / "undrift"


def load(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Sequence[tuple[str, Any]] = (),
) -> Settings:
    """Settings from a file, then the environment, then `overrides` as `("gateway.port", 0)`.

    The file is TOML, or JSON where its name ends so; `UNDRIFT_CONFIG` names it where `path` is None. Raises
    InvalidSetting, naming the setting as it was written and what was expected.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get("UNDRIFT_CONFIG") or None
    tree = {} if path is None else _read(Path(path))
    spelled: dict[str, str] = {}
    for setting, value in _from_environment(environ):
        _put(tree, setting.dotted, value)
        spelled[setting.dotted] = setting.variable
    for dotted, value in overrides:
        _put(tree, dotted, value)
        spelled[dotted] = dotted
    tree.setdefault("data_dir", str(default_data_dir()))
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidSetting(_explain(str(error), tree, spelled, path)) from None
    settings.data_dir = os.path.abspath(os.path.expanduser(settings.data_dir))
    _declare_network(settings)
    _declare_servers(settings)
    return settings


def check_proxies(settings: Settings) -> None:
    """Raises InvalidSetting."""
    for one in settings.limits.trusted_proxies:
        try:
            ipaddress.ip_network(one)
        except ValueError:
            expected = "expected addresses and networks such as 10.0.0.0/8"
            raise InvalidSetting(f"limits.trusted_proxies: {expected}, got {one!r:.80}") from None


def _declare_network(settings: Settings) -> None:
    """Where directories are named, the integration `network` is as if it were in the file, unless it is."""
    network = settings.network
    if not network.directories or any(one.id == "network" for one in settings.integrations):
        return
    settings.integrations.append(
        IntegrationDeclared(
            id="network",
            name="RAIDA network",
            kind="network",
            sync_interval=network.sync_interval_s,
            config={
                "directories": network.directories,
                "timeout": network.timeout_s,
                "patience": network.patience_s,
                "maxRows": network.max_rows,
                "maxChangeFraction": network.max_change_fraction,
                "ping": network.ping,
                "pingTimeout": network.ping_timeout_s,
            },
        )
    )


def _declare_servers(settings: Settings) -> None:
    """Where there is a Panel, the integration `servers` lists all of its servers again and again."""
    panel = settings.panel
    if not panel.url or any(one.id == "servers" for one in settings.integrations):
        return
    settings.integrations.append(
        IntegrationDeclared(
            id="servers",
            name="Servers of the Panel",
            kind="servers",
            sync_interval=max(round(panel.list_s), 1) if panel.list_s else None,
            config={"maxChangeFraction": panel.max_change_fraction},
        )
    )


def dump(settings: Settings) -> bytes:
    """All settings as the text of a file `.json` that `load` reads."""
    return msgspec.json.format(msgspec.json.encode(settings), indent=1) + b"\n"


class Setting(NamedTuple):
    """One setting: `gateway.port` and `UNDRIFT_GATEWAY_PORT`; `hint` is its type."""

    dotted: str
    variable: str
    hint: Any


def all_settings() -> Iterator[Setting]:
    """Every setting there is, with both of its names."""
    for name, hint in get_type_hints(Settings, include_extras=True).items():
        if isinstance(hint, type) and issubclass(hint, Struct):
            for key, kind in get_type_hints(hint, include_extras=True).items():
                yield Setting(f"{name}.{key}", f"UNDRIFT_{name}_{key}".upper(), kind)
        else:
            yield Setting(name, f"UNDRIFT_{name}".upper(), hint)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        return msgspec.json.decode(text, type=dict[str, Any]) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.MsgspecError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidSetting(f"{path}: {reason}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[Setting, Any]]:
    known = {setting.variable: setting for setting in all_settings()}
    for name, text in environ.items():
        if not name.startswith("UNDRIFT_") or name in PLAIN or text == "":
            continue
        if name not in known:
            _refuse_unknown(name, known)
        elif get_origin(known[name].hint) is list:
            yield known[name], _list(name, text)
        elif get_origin(known[name].hint) is dict:
            yield known[name], _table(name, text)
        else:
            yield known[name], text


def _refuse_unknown(name: str, known: Mapping[str, Setting]) -> None:
    """A name in one of our sections, or almost one of ours, is a mistake; another program may own the rest."""
    sections = {variable.split("_")[1] for variable, setting in known.items() if "." in setting.dotted}
    near = difflib.get_close_matches(name, [*known, *PLAIN], n=3, cutoff=0.8)
    if name.split("_")[1] in sections:
        near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near or name.split("_")[1] in sections:
        raise InvalidSetting(f"{name} is not a setting" + _nearest(near))


def _list(name: str, text: str) -> list[Any]:
    """`a, b`, or a JSON array where the items are more than words."""
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.MsgspecError as error:
        raise InvalidSetting(f"{name}: expected a list, `a,b` or a JSON array: {error}") from None


def _table(name: str, text: str) -> dict[str, str]:
    """`a=b, c=d`, or a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text, type=dict[str, str])
        except msgspec.MsgspecError:
            raise InvalidSetting(f"{name}: expected a table, `a=b,c=d` or a JSON object of texts") from None
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(mark for _, mark, _ in pairs):
        raise InvalidSetting(f"{name}: expected a table, `a=b,c=d` or a JSON object of texts")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _explain(text: str, tree: Mapping[str, Any], spelled: Mapping[str, str], path: Any) -> str:
    """msgspec's words, with the place as it was written: by file and key, or by variable."""
    problem, _, where = text.partition(" - at `$.")
    dotted, _, inner = where.rstrip("`").partition("[")
    unknown = re.search(r"unknown field `(.*)`", problem)
    if unknown is not None:
        return _unknown_key(dotted, inner, unknown[1], spelled, path)
    setting = next((each for each in all_settings() if each.dotted == dotted), None)
    name = spelled.get(dotted) or (f"{path}: {_key(dotted)}" if path else dotted)
    expected = (_description(setting.hint) if setting else None) or problem.partition("Expected ")[2].partition(",")[0]
    said = f"expected {expected.replace('`', '')}" if expected else problem
    inside = f" (in [{inner})" if inner else ""
    return f"{name}: {said}{inside}{_given(dotted, tree)}"


def _unknown_key(section: str, inner: str, key: str, spelled: Mapping[str, str], path: Any) -> str:
    names = [setting.dotted for setting in all_settings()]
    dotted = f"{section}.{key}" if section else key
    near = difflib.get_close_matches(dotted, [*names, *Settings.__struct_fields__], n=3, cutoff=0.6)
    place = spelled.get(dotted) or f"{path or 'settings'}: {_key(dotted)}"
    return f"{place} is not a setting" + ("" if inner else _nearest([_key(each) for each in near]))


def _key(dotted: str) -> str:
    section, _, key = dotted.rpartition(".")
    return f"[{section}] {key}" if section else key


def _nearest(names: Sequence[str]) -> str:
    return f"; the nearest are {', '.join(names)}" if names else ""


def _description(hint: Any) -> str | None:
    return next((meta.description for meta in get_args(hint) if isinstance(meta, Meta) and meta.description), None)


def _given(dotted: str, tree: Mapping[str, Any]) -> str:
    """What was written instead, unless it may hold a password."""
    value: Any = tree
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    secret = dotted.endswith(("url", "passwords", "issuer", "token")) or dotted == "integrations"
    return "" if value is None or secret else f", got {value!r:.80}"


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InvalidSetting(f"[{section}]: expected a table of settings, got {inner!r:.80}")
        tree = inner
    tree[key] = value
