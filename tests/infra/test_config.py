"""Settings: each has a key in the file and a name in the environment, and a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pytest

from infra import config, configfile

EVERY = list(configfile.all_settings())


def sample(hint: Any) -> Any:
    """A value of that type that is nobody's default."""
    if hint == config.Level:
        return "debug"
    if hint == config.Format:
        return "json"
    if hint is bool:
        return False
    if get_origin(hint) is Annotated:
        inner, *about = get_args(hint)
        bounds = [each.ge for each in about if isinstance(each, msgspec.Meta) and each.ge is not None]
        return max([sample(inner), *bounds]) if bounds else sample(inner)
    if get_origin(hint) is list:
        return [sample(get_args(hint)[0])]
    if get_origin(hint) is dict:
        return {"gateway": "word"}
    if get_origin(hint) is Literal:
        return get_args(hint)[-1]
    if get_args(hint):
        return sample(next(part for part in get_args(hint) if part is not type(None)))
    if issubclass(hint, msgspec.Struct):
        declared = {"id": "a", "name": "b", "kind": "files", "sync_interval": 60, "config": {"sourceDirectory": "/a"}}
        return {**declared, "schedule": {"jitter": 5}, "policy": {"attempts": 2}}
    return {int: 7, float: 0.375, str: "/elsewhere"}[hint]


def value_of(settings: config.Settings, dotted: str) -> Any:
    found: Any = msgspec.to_builtins(settings)
    for part in dotted.split("."):
        found = found[part]
    return found


def in_the_environment(value: Any) -> str:
    if isinstance(value, list) and not isinstance(value[0], dict):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def in_a_file(tmp_path: Path, text: str, name: str = "undrift.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.dotted)
def test_every_setting_is_read_from_the_file_and_from_the_environment(
    setting: configfile.Setting, tmp_path: Path
) -> None:
    value = sample(setting.hint)
    if setting.hint is bool:
        value = not value_of(configfile.load(None, {}), setting.dotted)
    tree: dict[str, Any] = {}
    configfile._put(tree, setting.dotted, value)
    from_file = configfile.load(in_a_file(tmp_path, msgspec.json.encode(tree).decode(), "undrift.json"), {})
    from_environment = configfile.load(None, {setting.variable: in_the_environment(value)})
    assert value_of(configfile.load(None, {}), setting.dotted) != value
    assert value_of(from_file, setting.dotted) == value
    assert value_of(from_environment, setting.dotted) == value


def test_passwords_are_a_table_in_the_environment_and_never_repeated(tmp_path: Path) -> None:
    for text in ("core=a1, relay=b2", '{"core": "a1", "relay": "b2"}'):
        assert configfile.load(None, {"UNDRIFT_NATS_PASSWORDS": text}).nats.passwords == {"core": "a1", "relay": "b2"}
    for text in ("canary", '{"core": ["canary"]}', '{"core": canary'):
        with pytest.raises(config.InvalidSetting, match="UNDRIFT_NATS_PASSWORDS: expected a table") as caught:
            configfile.load(None, {"UNDRIFT_NATS_PASSWORDS": text})
        assert "canary" not in str(caught.value)
    with pytest.raises(config.InvalidSetting, match="passwords") as caught:
        configfile.load(in_a_file(tmp_path, "[nats]\npasswords = 'canary'"), {})
    assert "canary" not in str(caught.value)


def test_the_environment_is_above_the_file_and_the_command_line_above_both(tmp_path: Path) -> None:
    path = in_a_file(tmp_path, "[gateway]\nport = 1\nhost = 'a'\nread_wait_s = 1\n")
    environ = {"UNDRIFT_GATEWAY_PORT": "2", "UNDRIFT_GATEWAY_HOST": "b", "UNDRIFT_CONFIG": str(path)}
    gateway = configfile.load(None, environ, [("gateway.port", 3)]).gateway
    assert (gateway.port, gateway.host, gateway.read_wait_s) == (3, "b", 1.0)


def test_all_settings_survive_the_file_for_child_processes(tmp_path: Path) -> None:
    tree: dict[str, Any] = {}
    for setting in EVERY:
        configfile._put(tree, setting.dotted, 1.5 if setting.dotted == "up.stop_s" else sample(setting.hint))
    settings = configfile.load(in_a_file(tmp_path, msgspec.json.encode(tree).decode(), "a.json"), {})
    assert configfile.load(in_a_file(tmp_path, configfile.dump(settings).decode(), "b.json"), {}) == settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gateway]\nport = 'many'", "[gateway] port: expected int, got 'many'"),
        ("[gateway]\nport = 70000", "[gateway] port: expected int <= 65535, got 70000"),
        ("[log]\nlevel = 'loud'", "[log] level: expected debug, info, warning or error, got 'loud'"),
        ("[gateway]\nprot = 1", "[gateway] prot is not a setting; the nearest are [gateway] port"),
        ("[gatewya]\nport = 1", "gatewya is not a setting; the nearest are gateway"),
        ("gateway = 3", "gateway: expected object, got 3"),
        ("[gateway]\nalso_listen = [1, 'x']", "[gateway] also_listen: expected int (in [1]), got [1, 'x']"),
        ("[[integrations]]\nid = 'a'", "integrations: Object missing required field `name` (in [0])"),
        ("[gateway", "Expected ']'"),
    ],
)
def test_a_wrong_key_in_the_file_is_named_with_what_was_expected(text: str, expected: str, tmp_path: Path) -> None:
    path = in_a_file(tmp_path, text)
    with pytest.raises(config.InvalidSetting) as caught:
        configfile.load(path, {})
    assert str(caught.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("UNDRIFT_GATEWAY_PORT", "many", "UNDRIFT_GATEWAY_PORT: expected int, got 'many'"),
        ("UNDRIFT_AUTH_OPEN_LOOPBACK", "maybe", "UNDRIFT_AUTH_OPEN_LOOPBACK: expected bool | null, got 'maybe'"),
        ("UNDRIFT_GATEWAY_PROT", "1", "UNDRIFT_GATEWAY_PROT is not a setting; the nearest are UNDRIFT_GATEWAY_PORT"),
        ("UNDRIFT_GATWAY_PORT", "1", "UNDRIFT_GATWAY_PORT is not a setting; the nearest are UNDRIFT_GATEWAY_PORT"),
        ("UNDRIFT_TOKN", "1", "UNDRIFT_TOKN is not a setting; the nearest are UNDRIFT_TOKEN"),
        ("UNDRIFT_JOBS_X", "1", "UNDRIFT_JOBS_X is not a setting; the nearest are UNDRIFT_JOBS_"),
        ("UNDRIFT_GATEWAY_ALSO_LISTEN", "[1", "UNDRIFT_GATEWAY_ALSO_LISTEN: expected a list"),
        ("UNDRIFT_CONFIG", "/no/such/file.toml", "/no/such/file.toml: No such file or directory"),
    ],
)
def test_a_wrong_name_in_the_environment_is_named_with_what_was_expected(name: str, text: str, expected: str) -> None:
    with pytest.raises(config.InvalidSetting) as caught:
        configfile.load(None, {name: text})
    assert str(caught.value).startswith(expected)


def test_names_of_other_programs_and_empty_ones_are_left_alone() -> None:
    environ = {
        "UNDRIFT_SERVICE_HOST": "10.0.0.1",  # as a cluster sets them for a service called undrift
        "UNDRIFT_PORT_8080_TCP_ADDR": "10.0.0.1",
        "UNDRIFT_URL": "http://127.0.0.1:8080",
        "UNDRIFT_TOKEN": "x",
        "UNDRIFT_GATEWAY_PORT": "",
        "PATH": "/bin",
    }
    assert configfile.load(None, environ) == configfile.load(None, {})


def test_a_password_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    path = in_a_file(tmp_path, "[database]\nurl = ['postgresql://me:hunter2@host/db']")
    with pytest.raises(config.InvalidSetting, match=r"\[database\] url: expected str$") as caught:
        configfile.load(path, {})
    assert "hunter2" not in str(caught.value)


def test_a_list_can_be_made_empty() -> None:
    assert configfile.load(None, {"UNDRIFT_GATEWAY_ALSO_LISTEN": "[]"}).gateway.also_listen == []
