"""The settings that are written into a server's files before it starts."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import server_files
from infra.server_files_text import ini_path
from infra.server_files_tree import steps

VARIABLES = {
    "config.docker.interface": "172.18.0.1",
    "config": {"docker": {"network": {"interface": "172.18.0.1"}}},
    "server": {"build": {"default": {"ip": "10.0.0.9", "port": 25565}, "memory": 1024}},
}

SERVER_PROPERTIES = r"""#Minecraft server properties
#Tue Nov 17 10:00:00 UTC 2026
enable-jmx-monitoring=false
rcon.port=25575
level-seed=
motd=A Minecraft Server\: \u00a7aWelcome
query.port=25565

! kept as well
server-ip:
server-port = 25565
generator-settings={"layers":\
    [1,2]}
rcon.password=
"""

BUNGEECORD = """# BungeeCord
listeners:
- query_port: 25577
  motd: '&1Another Bungee server'
  priorities:
  - lobby
  host: 0.0.0.0:25577
  ping_passthrough: false
remote_ping_timeout: 5000
servers:
  lobby:
    motd: '&1Just another BungeeCord - Forced Host'
    address: localhost:25565
    restricted: false
  far:
    address: play.example.com:25565
  near:
    address: 127.0.0.1
groups:
  md_5: [admin]
online_mode: true
stats: 8b1a-44
connection_throttle: 0755
timestamp: 2026-11-17
"""

PALWORLD = (
    "; This configuration file is a sample of the default server settings.\r\n"
    "[/Script/Pal.PalGameWorldSettings]\r\n"
    'OptionSettings=(Difficulty=None,DayTimeSpeedRate=1.0,ServerName="Default Palworld Server",PublicPort=8211)\r\n'
)

SEVEN_DAYS = """<?xml version="1.0"?>
<ServerSettings>
  <!-- GENERAL SERVER SETTINGS -->
  <property name="ServerName" value="My Game Host"/>
  <property name="ServerPort" value="26900"/>
</ServerSettings>
"""


class Folder:
    """A server's, and what is written into it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def apply(self, name: str, parser: str, *rules: dict[str, Any], content: str | bytes | None = None) -> list[str]:
        if content is not None:
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.files([{"file": name, "parser": parser, "replace": list(rules)}])

    def files(self, files: Any) -> list[str]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return server_files.apply(descriptor, json.dumps(files), VARIABLES)
        finally:
            os.close(descriptor)

    def text(self, name: str) -> str:
        return (self.path / name).read_bytes().decode()

    def lines_changed(self, name: str, before: str) -> list[str]:
        """Those that were not there before; nothing else may differ."""
        old, new = before.splitlines(keepends=True), self.text(name).splitlines(keepends=True)
        assert [line for line in new if line in old] == [line for line in old if line in new]
        return [line for line in new if line not in old]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Folder]:
    path = tmp_path / "server"
    path.mkdir()
    yield Folder(path)
    assert [name for name in os.listdir(path) if name.startswith(".undrift")] == []


def rule(match: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"match": match, "replace_with": value, **more}


# Java's properties.


def test_properties_of_minecraft(server: Folder) -> None:
    warnings = server.apply(
        "server.properties",
        "properties",
        rule("server-ip", "0.0.0.0"),
        rule("server-port", "{{server.build.default.port}}"),
        rule("query.port", "{{ server.build.default.port }}"),
        rule("enable-query", True),
        rule("max-players", 20),
        rule("rcon.password", "a b=c\\d é 😀"),
        rule("generator-settings", "[]", if_value='{"layers":[1,2]}'),
        rule("level-seed", "x", if_value="not this"),
        rule("missing", "x", if_value="anything"),
        content=SERVER_PROPERTIES,
    )
    assert warnings == []
    assert server.lines_changed("server.properties", SERVER_PROPERTIES) == [
        "server-ip:0.0.0.0\n",
        "generator-settings=[]\n",
        "rcon.password=a b=c\\\\d \\u00e9 \\ud83d\\ude00\n",
        "enable-query=true\n",
        "max-players=20\n",
    ]
    assert "server-port = 25565\n" in server.text("server.properties")


def test_properties_keep_the_ends_and_the_bytes_of_lines(server: Folder) -> None:
    server.apply("a.properties", "properties", rule("b", "2"), rule("c", "3"), content=b"a=\xe9t\xe9\r\nb=1\r\nb = 0")
    assert (server.path / "a.properties").read_bytes() == b"a=\xe9t\xe9\r\nb=2\r\nb = 2\r\nc=3\r\n"


def test_properties_by_a_pattern(server: Folder) -> None:
    change = rule("host", "{{config.docker.interface}}$2", if_value=r"regex:^(127\.0\.0\.1|localhost)(:\d{1,5})?$")
    server.apply("a.properties", "properties", change, content="host=localhost:80\n")
    assert server.text("a.properties") == "host=172.18.0.1:80\n"
    server.apply("a.properties", "properties", change, content="host=elsewhere:80\n")
    assert server.text("a.properties") == "host=elsewhere:80\n"


# YAML and JSON.


def test_the_configuration_of_bungeecord(server: Folder) -> None:
    local = r"regex:^(127\.0\.0\.1|localhost)(:\d{1,5})?$"
    warnings = server.apply(
        "config.yml",
        "yaml",
        rule("listeners[0].query_port", "{{server.build.default.port}}"),
        rule("listeners[0].host", "0.0.0.0:{{server.build.default.port}}"),
        rule("servers.*.address", "{{config.docker.interface}}$2", if_value=local),
        rule("online_mode", False),
        rule("groups.md_5.0", "owner", if_value="admin"),
        rule("stats", "changed", if_value="other"),
        rule("new.deep.value", "yes"),
        content=BUNGEECORD,
    )
    assert warnings == []
    found = yaml.safe_load(server.text("config.yml"))
    before = yaml.safe_load(BUNGEECORD)
    before["listeners"][0] |= {"query_port": 25565, "host": "0.0.0.0:25565"}
    before["servers"]["lobby"]["address"] = "172.18.0.1:25565"
    before["servers"]["near"]["address"] = "172.18.0.1"
    before |= {"online_mode": False, "groups": {"md_5": ["owner"]}, "new": {"deep": {"value": "yes"}}}
    assert found == before
    assert list(found) == list(before)
    assert "connection_throttle: 0755\ntimestamp: 2026-11-17\n" in server.text("config.yml")
    assert "md_5: [owner]" in server.text("config.yml")


@pytest.mark.parametrize("parser", ["yaml", "yml", "json"])
@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({"a": 1}, rule("a", "2"), {"a": 2}),
        ({"a": 1}, rule("a", "007"), {"a": "007"}),
        ({"a": 1}, rule("a", "true"), {"a": "true"}),
        ({"a": 1}, rule("a", True), {"a": True}),
        ({"a": 1}, rule("a", 1.5), {"a": 1.5}),
        ({"a": 1}, rule("a", None), {"a": None}),
        ({"a": "x"}, rule("a", "- !x: {y}"), {"a": "- !x: {y}"}),
        ({"a": 1}, {"match": "a", "value": "legacy"}, {"a": "legacy"}),
        ({"25565": 1}, rule(25565, "x", if_value=1), {"25565": "x"}),
        ({"a": {"b": 1}}, rule("a.c.d", "x"), {"a": {"b": 1, "c": {"d": "x"}}}),
        ({}, rule("a[0].b", "x"), {"a": [{"b": "x"}]}),
        ({"a": None}, rule("a[0]", "x"), {"a": ["x"]}),
        ({"a": [[1, 2]]}, rule("a[0][1]", 3), {"a": [[1, 3]]}),
        ({"a": {"x": {"p": 1}, "y": {}, "z": 5}}, rule("a.*.p", 2), {"a": {"x": {"p": 2}, "y": {"p": 2}, "z": 5}}),
        ({"a": [{"b": 1}, {"b": 2}]}, rule("a.*.b", 3, if_value="2"), {"a": [{"b": 1}, {"b": 3}]}),
        ({"a": {"x": {"p": {"q": 1}}}}, rule("a.*.*.q", 2), {"a": {"x": {"p": {"q": 2}}}}),
        ({"a": {"x": 1, "y": 2}}, rule("a.*", "0"), {"a": {"x": 0, "y": 0}}),
        ({"a.b": 1}, rule("a~1b", 2), {"a.b": 2}),
        ({"a": {}}, rule("a.b.c", "x", if_value="regex:.*"), {"a": {}}),
        ({"a": "k=v k=w"}, rule("a", "${1}!$$", if_value=r"regex:(k)="), {"a": "k!$v k!$w"}),
        ({"a": "x"}, rule("a", "{{config.nothing}} {{config.docker.network.Interface}}"), None),
        ({"*": {"*": 1}}, rule("*.*", 2), {"*": {"*": 2}}),
    ],
)
def test_values_at_paths(server: Folder, parser: str, before: Any, change: dict[str, Any], after: Any) -> None:
    write, load = (json.dumps, json.loads) if parser == "json" else (yaml.safe_dump, yaml.safe_load)
    assert server.apply(f"config/a.{parser}", parser, change, content=write(before)) == []
    expected = {"a": "{{config.nothing}} 172.18.0.1"} if after is None else after
    assert load(server.text(f"config/a.{parser}")) == expected


def test_json_keeps_its_order_and_its_letters(server: Folder) -> None:
    server.apply("a.json", "json", rule("b", "2"), content='{"z": "é §", "b": 1, "a": [1.50, 12345678901234567890]}\n')
    expected = {"z": "é §", "b": 2, "a": [1.5, 12345678901234567890]}
    assert server.text("a.json") == json.dumps(expected, indent=4, ensure_ascii=False) + "\n"


def test_what_stands_in_several_places_is_changed_in_one(server: Folder) -> None:
    content = "base: &b {p: 1, q: [1]}\none: *b\ntwo: *b\nmerged: {<<: *b}\n"
    server.apply("a.yml", "yml", rule("one.p", "2"), rule("merged.p", "3"), content=content)
    shared = {"p": 1, "q": [1]}
    expected = {"base": shared, "one": {"p": 2, "q": [1]}, "two": shared, "merged": {"p": 3, "q": [1]}}
    assert yaml.safe_load(server.text("a.yml")) == expected


def test_what_a_path_cannot_reach_is_a_warning_and_the_rest_is_written(server: Folder) -> None:
    warnings = server.apply("a.yml", "yml", rule("a.b", 1), rule("l[3]", 1), rule("c", 2), content="a: 5\nl: [1]\n")
    assert warnings == [
        "a.yml: a.b: what is there is no map",
        "a.yml: l[3]: there is no such element",
    ]
    assert yaml.safe_load(server.text("a.yml")) == {"a": 5, "l": [1], "c": 2}


def test_paths_are_read() -> None:
    assert steps("a.b[0][12].c.*.3") == ["a", "b", 0, 12, "c", None, "3"]
    assert steps("a[b].[0]") == ["a[b]", 0]


# Plain files and ini.


def test_lines_of_a_plain_file(server: Folder) -> None:
    content = "hostname old\r\nsv_password x\nport 1\n// port 2"
    server.apply(
        "server.cfg",
        "file",
        rule("hostname", "hostname {{server.build.memory}}"),
        rule("port", "port 7777"),
        rule("// port", "last"),
        rule("", "never"),
        content=content,
    )
    assert server.text("server.cfg") == "hostname 1024\r\nsv_password x\nport 7777\nlast\n"


def test_the_settings_of_palworld(server: Folder) -> None:
    name = "Pal/Saved/Config/LinuxServer/PalWorldSettings.ini"
    value = '(Difficulty=Hard,ServerName="Mine",PublicPort=25565)'
    warnings = server.apply(
        name,
        "ini",
        rule("[/Script/Pal.PalGameWorldSettings].OptionSettings", value),
        rule("[/Script/Pal.PalGameWorldSettings].New.Key", 1),
        rule("Other.Key", "pass#word;"),
        content=PALWORLD,
    )
    assert warnings == []
    head = "".join(PALWORLD.splitlines(keepends=True)[:2])
    assert server.text(name) == f"{head}OptionSettings={value}\r\nNew.Key=1\r\n\r\n[Other]\r\nKey=pass#word;\r\n"


INI = """top = 1
# a comment
[One]
port: 5
name="quoted"
; port = 6

[Two]
port = 7
not a setting

[One]
more = 8
"""


def test_an_ini_file_keeps_what_nobody_named(server: Folder) -> None:
    server.apply(
        "a.ini",
        "ini",
        rule("top", 2),
        rule("One.port", "{{server.build.default.port}}"),
        rule("One.name", "new", if_value="quoted"),
        rule("One.name", "newer", if_value="quoted"),
        rule("One.added", True),
        rule("Two.port", "8", if_value="regex:^9"),
        rule("first", "x"),
        content=INI,
    )
    expected = INI.replace("top = 1\n", "top = 2\nfirst = x\n").replace("port: 5", "port: 25565")
    expected = expected.replace('name="quoted"', "name=new").replace("more = 8\n", "more = 8\nadded = true\n")
    assert server.text("a.ini") == expected


def test_a_value_of_several_lines_is_none_of_an_ini_file(server: Folder) -> None:
    assert server.apply("a.ini", "ini", rule("a", "1\nb=2"), content="a=0\n") == [
        "a.ini: a: a value of several lines cannot be written there"
    ]
    assert server.text("a.ini") == "a=0\n"


@pytest.mark.parametrize(
    ("match", "path"),
    [
        ("a", ("", "a")),
        ("a.b", ("a", "b")),
        ("a.b.c", ("a", "b.c")),
        ("[/S/a.b].c", ("/S/a.b", "c")),
        ("[a]b.c", ("ab", "c")),
    ],
)
def test_paths_of_ini_files(match: str, path: tuple[str, str]) -> None:
    assert ini_path(match) == path


# XML.


def test_the_settings_of_seven_days_to_die(server: Folder) -> None:
    warnings = server.apply(
        "serverconfig.xml",
        "xml",
        rule("ServerSettings.property[@name='ServerPort']", "[value='{{server.build.default.port}}']"),
        rule("ServerSettings.property[@name='New.One']", "[value='a & \"b\"']"),
        rule("ServerSettings.plain.deep", "<text>"),
        rule("Other.thing", "x"),
        content=SEVEN_DAYS,
    )
    assert warnings == ["serverconfig.xml: Other.thing: the document is a ServerSettings"]
    assert (
        server.text("serverconfig.xml")
        == """<?xml version="1.0"?>
<ServerSettings>
  <!-- GENERAL SERVER SETTINGS -->
  <property name="ServerName" value="My Game Host"/>
  <property name="ServerPort" value="25565"/>
  <property name="New.One" value="a &amp; &quot;b&quot;"/>
  <plain>
    <deep>&lt;text&gt;</deep>
  </plain>
</ServerSettings>
"""
    )


def test_elements_of_any_name(server: Folder) -> None:
    content = "<a><b><p>1</p></b><c><p x='1'>2<i/></p></c><d/></a>"
    server.apply("a.xml", "xml", rule("a.*.p", "9", if_value="regex:^2"), rule("a.*.q", "8"), content=content)
    assert server.text("a.xml") == '<a><b><p>1</p></b><c><p x="1">9<i/></p></c><d/></a>\n'


def test_xml_in_another_encoding(server: Folder) -> None:
    content = "<?xml version='1.0' encoding='iso-8859-1'?>\n<a>é</a>".encode("latin-1")
    server.apply("a.xml", "xml", rule("a.b", "ü €"), content=content)
    assert (server.path / "a.xml").read_bytes() == (
        "<?xml version='1.0' encoding='iso-8859-1'?>\n<a>é\n  <b>ü &#8364;</b>\n</a>\n".encode("latin-1")
    )


@pytest.mark.parametrize(
    "content",
    [
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        '<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;">]><a>&y;</a>',
    ],
)
def test_entities_are_neither_fetched_nor_expanded(server: Folder, content: str) -> None:
    warnings = server.apply("a.xml", "xml", rule("a", "1"), content=content)
    assert warnings == ["a.xml: its XML has declarations of its own, which are not read"]
    assert server.text("a.xml") == content


# Files that are not there, are broken, or are not what they seem.


@pytest.mark.parametrize(
    ("parser", "change", "content"),
    [
        ("properties", rule("a", 1), "a=1\n"),
        ("ini", rule("s.a", 1), "[s]\na = 1\n"),
        ("json", rule("a.b", 1), '{\n    "a": {\n        "b": 1\n    }\n}'),
        ("yaml", rule("a.b", 1), "a:\n  b: 1\n"),
        ("xml", rule("a.b", 1), '<?xml version="1.0" encoding="utf-8"?>\n<a>\n  <b>1</b>\n</a>\n'),
    ],
)
def test_a_missing_file_is_made(server: Folder, parser: str, change: dict[str, Any], content: str) -> None:
    os.umask(0o022)
    if os.geteuid() == 0:
        os.chown(server.path, 988, 987)
    assert server.apply("deep/er/file", parser, change) == []
    assert server.text("deep/er/file") == content
    owner = os.stat(server.path)
    for name, mode in (("deep", 0o755), ("deep/er", 0o755), ("deep/er/file", 0o644)):
        found = os.stat(server.path / name)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, owner.st_uid, owner.st_gid)


def test_a_plain_file_is_not_made(server: Folder) -> None:
    assert server.apply("deep/server.cfg", "file", rule("a", "b")) == []
    assert os.listdir(server.path) == []


def test_mode_and_owner_are_kept_and_an_equal_file_is_not_touched(server: Folder) -> None:
    file = server.path / "a.properties"
    file.write_text("a=1\n")
    file.chmod(0o4640)
    if os.geteuid() == 0:
        os.chown(file, 988, 987)
        file.chmod(0o4640)
    before = os.stat(file)
    server.apply("a.properties", "properties", rule("a", "1"))
    assert os.stat(file) == before
    server.apply("a.properties", "properties", rule("a", "2"))
    after = os.stat(file)
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_uid, before.st_gid, 0o640)
    assert after.st_ino != before.st_ino
    assert file.read_text() == "a=2\n"


@pytest.mark.parametrize(
    ("parser", "content", "said"),
    [
        ("yaml", "a: [secret", "not YAML, line 2"),
        ("yaml", "- secret", "its YAML is no map"),
        ("yaml", "a: 1\n---\nb: 2", "not YAML, line 2"),
        ("yaml", "{a: " * 5000, "its YAML is too deep"),
        ("yaml", "a: \x01", "not YAML"),
        ("json", '{"a": secret}', "not JSON, line 1"),
        ("json", "5", "its JSON is neither a map nor a list"),
        ("json", '{"b": 1e999}', "a number in its JSON is too large"),
        ("json", "[" * 100_000, "could not be changed (RecursionError)"),
        ("xml", "<a>secret</b>", "not XML, line 1"),
        ("xml", "<a>" * 5000, "its XML is too deep"),
        ("xml", "<?xml version='1.0' encoding='nothing'?><a/>", "not XML"),
    ],
)
def test_a_broken_file_is_a_warning_without_its_content(server: Folder, parser: str, content: str, said: str) -> None:
    assert server.apply("a", parser, rule("a", "1"), content=content) == [f"a: {said}"]
    assert server.text("a") == content


def test_one_broken_file_hides_no_other(server: Folder) -> None:
    (server.path / "a.json").write_text("{")
    files = [
        {"file": "a.json", "parser": "json", "replace": [rule("a", 1)]},
        {"file": "b.json", "parser": "json", "replace": [rule("a", 1), {"no": 1}, rule("b", [1]), rule("c", 2)]},
        {"file": "c.json", "parser": "toml", "replace": []},
        {"file": "d.json", "parser": "json"},
        7,
    ]
    assert server.files(files) == [
        "b.json: a replacement without a match was left out",
        "b.json: a replacement that is no plain value was left out",
        "a file to be written has no name, or no known parser",
        "a file to be written has no name, or no known parser",
        "a.json: not JSON, line 1",
    ]
    assert json.loads(server.text("b.json")) == {"a": 1, "c": 2}
    assert json.loads(server.text("d.json")) == {}
    assert server.files({}) == ["the settings to be written into files are not what the Panel's interface says"]
    assert server.files([]) == []


def test_a_pattern_that_is_none_replaces_nothing(server: Folder) -> None:
    warnings = server.apply("a.json", "json", rule("a", "x", if_value="regex:("), rule("b", 1), content='{"a": "y"}')
    assert warnings == ["a.json: the condition of 'a' is no pattern, and nothing is replaced there"]
    assert json.loads(server.text("a.json")) == {"a": "y", "b": 1}


def _link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "target")


def _folder_link(path: Path, outside: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to(outside)


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, outside: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("parser", ["properties", "file"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_link, "a symbolic link"),
        (_folder_link, "The path leads through a symbolic link"),
        (_fifo, "not a plain file"),
        (_folder, "not a plain file"),
    ],
)
def test_nothing_outside_is_reached(
    server: Folder, tmp_path: Path, parser: str, make: Callable[[Path, Path], None], said: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target").write_text("a=1\n")
    (server.path / "in").mkdir()
    make(server.path / "in" / "target", outside)
    assert server.apply("in/target", parser, rule("a", "2")) == [f"in/target: {said}"]
    assert (outside / "target").read_text() == "a=1\n"
    assert os.listdir(outside) == ["target"]


@pytest.mark.parametrize("name", ["../a", "in/../../a", "/../a", "", "/", "a\x00b", "x" * 300])
def test_names_that_lead_out_are_refused(server: Folder, name: str) -> None:
    assert len(server.apply(name, "properties", rule("a", "2"))) == 1
    assert os.listdir(server.path) == []
    assert os.listdir(server.path.parent) == ["server"]


def test_an_absolute_name_is_beneath_the_folder(server: Folder) -> None:
    assert server.apply("/./a.properties", "properties", rule("a", "2")) == []
    assert server.text("a.properties") == "a=2\n"


def test_a_large_file_is_left_alone(server: Folder) -> None:
    for parser, size, said in (("ini", server_files.LIMIT, "8 MiB"), ("yaml", server_files.YAML_LIMIT, "1 MiB")):
        with (server.path / "large").open("wb") as file:
            file.truncate(size + 1)
        assert server.apply("large", parser, rule("a", "1")) == [f"large: larger than {said}"]
        assert (server.path / "large").stat().st_size == size + 1
