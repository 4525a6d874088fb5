"""Each rule with a file that it speaks up at, and the same file mended, at which it is silent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fedmq_broker.checking import Finding, check, doors, losing, wording
from fedmq_broker.checking.finding import Context
from fedmq_broker.checking.options import NEWEST, OPTIONS, Version, option_of
from fedmq_broker.checking.reading import read_file
from fedmq_broker.sizing import plan

DEVICES = 200
LIMITS = plan(DEVICES, 300_000, listeners=1)
OLD = (2, 0, 11)

GOOD = """
allow_anonymous false
plugin mosquitto_dynamic_security.so
plugin_opt_config_file dynamic-security.json
max_packet_size 131072
max_queued_messages 2600
max_queued_bytes 26214400
persistence true
persistence_location data/
persistent_client_expiration 1d
listener 8883
certfile file.pem
keyfile file.key
cafile file.pem
crlfile file.crl
require_certificate true
use_identity_as_username true
use_username_as_clientid true
max_connections 432
"""
LISTENING = (
    "listener certfile keyfile cafile crlfile require_certificate use_identity_as_username use_username_as_clientid"
    " max_connections"
)
BRIDGE = "connection core\naddress core.example:8883\ntopic up/# out 1\nbridge_cafile file.pem\n"


def look(folder: Path, text: str, version: tuple[int, ...] = OLD) -> list[Finding]:
    for name in ("file.pem", "file.key", "file.crl"):
        (folder / name).touch(mode=0o600)
    path = folder / "mosquitto.conf"
    path.write_text(text)
    return check(path, devices=DEVICES, limits=LIMITS, version=version)


def without(text: str, *names: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.split(" ")[0] not in names)


@pytest.mark.parametrize("version", [OLD, NEWEST])
def test_a_sound_file_passes_clean(tmp_path: Path, version: tuple[int, ...]) -> None:
    text = GOOD if version == OLD else f"memory_limit 1000000000\n{GOOD}"
    assert look(tmp_path, text, version) == []
    assert look(tmp_path, text + BRIDGE, version) == []


def bad(added: str, removed: str) -> str:
    text = without(GOOD, *removed.removeprefix("+").split())
    return f"{text}{added}\n" if removed.startswith("+") else f"{added}\n{text}"


CASES = [
    # rule, what is added to the good file (above its listener), what is taken out of it, the line that is named
    ("message-size-limit", "message_size_limit 100000", "", "message_size_limit 100000"),
    ("max-queued-messages", "", "max_queued_messages", None),
    ("max-queued-messages", "max_queued_messages 100", "max_queued_messages", "max_queued_messages 100"),
    ("max-queued-bytes", "max_queued_bytes 1000000", "max_queued_bytes", "max_queued_bytes 1000000"),
    (
        "unbounded-queue",
        "max_queued_messages 0",
        "max_queued_messages max_queued_bytes",
        "max_queued_messages 0",
    ),
    ("max-packet-size", "max_packet_size 65536", "max_packet_size", "max_packet_size 65536"),
    ("unbounded-packets", "", "max_packet_size", None),
    ("unbounded-packets", "max_packet_size 0", "max_packet_size", "max_packet_size 0"),
    ("retain-available", "retain_available false", "", "retain_available false"),
    ("persistence", "", "persistence", None),
    ("persistence-location", "", "persistence_location", "persistence true"),
    ("autosave-interval", "autosave_interval 0", "", "autosave_interval 0"),
    ("persistent-client-expiration", "", "persistent_client_expiration", None),
    ("memory-limit-and-plugin", "memory_limit 1000000000", "", "memory_limit 1000000000"),
    ("memory-limit", "", "+plugin plugin_opt_config_file", None),
    ("max-inflight-messages", "max_inflight_messages 0", "", "max_inflight_messages 0"),
    ("max-keepalive", "max_keepalive 20", "", "max_keepalive 20"),
    ("sys-interval", "sys_interval 0", "", "sys_interval 0"),
    ("clientid-prefixes", "clientid_prefixes sensor", "", "clientid_prefixes sensor"),
    ("check-retain-source", "check_retain_source false", "", "check_retain_source false"),
    (
        "special-characters",
        "auth_plugin_deny_special_chars false",
        "",
        "auth_plugin_deny_special_chars false",
    ),
    ("user-root", "user root", "", "user root"),
    ("unknown-option", "max_que_messages 3", "", "max_que_messages 3"),
    ("too-new", "global_max_clients 1000", "", "global_max_clients 1000"),
    ("deprecated", "retry_interval 20", "", "retry_interval 20"),
    ("no-value", "log_dest", "", "log_dest "),
    ("not-a-flag", "persistence yes", "persistence", "persistence yes"),
    ("not-a-number", "max_packet_size 2MB", "max_packet_size", "max_packet_size 2MB"),
    ("comment-in-value", "persistence_file saved.db # here", "", "persistence_file saved.db # here"),
    ("unknown-word", "log_type everything", "", "log_type everything"),
    ("twice", "autosave_interval 60\nautosave_interval 70", "", "autosave_interval 70"),
    ("twice", "user a\nuser b", "", "user b"),
    ("before-any-listener", "max_connections 5000", "", "max_connections 5000"),
    ("outside-a-bridge", "address example.org", "", "address example.org"),
    (
        "no-listener",
        "",
        LISTENING,
        None,
    ),
    # below the good file's listener
    ("max-qos", "max_qos 0", "+", "max_qos 0"),
    ("max-connections", "max_connections 100", "+max_connections", "max_connections 100"),
    ("mount-point", "mount_point tenant/", "+", "mount_point tenant/"),
    ("tls-version", "tls_version tlsv1.1", "+", "tls_version tlsv1.1"),
    ("no-revocation", "", "+crlfile", "require_certificate true"),
    ("no-authority", "", "+cafile", "require_certificate true"),
    ("use-identity-as-username", "", "+use_identity_as_username", "require_certificate true"),
    ("use-username-as-clientid", "", "+use_username_as_clientid", "listener 8883"),
    ("no-tls", "", "+certfile keyfile", "listener 8883"),
    ("same-port", "listener 8883", "+", "listener 8883"),
    ("no-such-port", "listener 98883", "+", "listener 98883"),
    ("no-such-file", "psk_file absent", "+", "psk_file absent"),
    ("anonymous", "allow_anonymous true\nlistener 1883", "+allow_anonymous", "allow_anonymous true"),
    (
        "anonymous",
        "allow_anonymous true\nlistener 1883 127.0.0.1",
        "+allow_anonymous",
        "allow_anonymous true",
    ),
    ("no-access-rules", "", "+plugin plugin_opt_config_file", "listener 8883"),
    ("outside-a-plugin", "", "+plugin", "plugin_opt_config_file dynamic-security.json"),
    (
        "nobody-comes-in",
        "listener 8885\ncertfile file.pem",
        "+plugin plugin_opt_config_file",
        "listener 8885",
    ),
    ("bridge-max-packet-size", BRIDGE + "bridge_max_packet_size 1000", "+", "bridge_max_packet_size 1000"),
    ("bridge-insecure", BRIDGE + "bridge_insecure true", "+", "bridge_insecure true"),
    ("bridge-in-the-clear", without(BRIDGE, "bridge_cafile"), "+", "address core.example:8883"),
]


@pytest.mark.parametrize(("rule", "added", "removed", "named"), CASES)
def test_a_rule_speaks_up_at_the_bad_file(
    tmp_path: Path, rule: str, added: str, removed: str, named: str | None
) -> None:
    text = bad(added, removed)
    found = [finding for finding in look(tmp_path, text) if finding.rule == rule]
    assert found, "nothing was found"
    line = found[0].line
    assert (None if line is None else f"{line.name} {line.value}") == named
    if line is not None:
        assert text.splitlines()[line.number - 1].split() == f"{line.name} {line.value}".split()
    assert found[0].mend


NEW_CASES = [
    ("memory-limit", ""),
    ("memory-limit", "memory_limit 1000000"),
    ("protocol-versions", "accept_protocol_versions 3"),
    ("expired-certificates", "disable_client_cert_date_checks true"),
    ("max-connections", "global_max_connections 100"),
    ("max-connections", "global_max_clients 100"),
    ("anonymous", "listener 1884\nlistener_allow_anonymous true"),
    ("http-api", "listener 9883\nprotocol http_api"),
    ("twice", "user a\nuser b"),
    ("not-a-number", "sys_interval 10s"),
    ("deprecated", "acl_file rules"),
    ("deprecated", "password_file words"),
    ("deprecated", "per_listener_settings false"),
]


@pytest.mark.parametrize(("rule", "added"), NEW_CASES)
def test_a_rule_about_what_came_with_a_later_version(tmp_path: Path, rule: str, added: str) -> None:
    assert rule in {one.rule for one in look(tmp_path, f"{GOOD}{added}\n", NEWEST)}


def test_every_rule_has_a_case_here(tmp_path: Path) -> None:
    """All but those about files beside the configuration, which have tests of their own."""
    texts: list[tuple[str, Version]] = [(bad(added, removed), OLD) for _, added, removed, _ in CASES]
    texts += [(f"{GOOD}{added}\n", NEWEST) for _, added in NEW_CASES]
    contexts = []
    for text, version in texts:
        look(tmp_path, text)
        contexts.append(Context(read_file(tmp_path / "mosquitto.conf"), DEVICES, LIMITS, version))
    silent = {
        rule.__name__
        for rule in (*losing.RULES, *doors.RULES, *wording.RULES)
        if not any(next(rule(context), None) for context in contexts)
    }
    assert silent == {"wide_rules", "readable_keys", "unread", "expiring"}


# ------------------------------------------------------------------------------------- files beside it


def test_an_access_list_that_grants_everything(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    text = "memory_limit 1000000000\n" + without(GOOD, "plugin", "plugin_opt_config_file")
    text = text.replace("listener 8883", "acl_file rules\nlistener 8883")
    rules.write_text("# all\ntopic readwrite #\n")
    [finding] = [one for one in look(tmp_path, text) if one.rule == "wide-access-rules"]
    assert "line 2 of rules grants every topic" in finding.what
    rules.write_text("pattern readwrite fedmq/v1/home/dev/%u/up/#\n")
    assert [one.rule for one in look(tmp_path, text)] == ["deprecated"]


def test_a_key_that_everybody_reads(tmp_path: Path) -> None:
    look(tmp_path, GOOD)
    (tmp_path / "file.key").chmod(0o644)
    assert [one.rule for one in look(tmp_path, GOOD)] == ["readable-key"]


def test_files_that_are_included_are_read_in_order_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.conf").write_text("listener 1883 192.0.2.1\nallow_anonymous true\n")
    (folder / "a.conf").write_text("# nothing\nmax_queued_messages 10\n")
    (folder / "c.txt").write_text("nonsense")
    text = without(GOOD, "max_queued_messages") + "include_dir conf.d\n"
    found = {one.rule: one for one in look(tmp_path, text)}
    queue, anonymous = found["max-queued-messages"].line, found["anonymous"].line
    assert queue is not None
    assert anonymous is not None
    assert (queue.path.name, queue.number) == ("a.conf", 2)
    assert (anonymous.path.name, anonymous.number) == ("b.conf", 2)
    assert not any("nonsense" in one.what for one in found.values())


@pytest.mark.parametrize(("days", "severity"), [(-1, "error"), (5, "warning"), (90, None)])
def test_a_certificate_that_ends(tmp_path: Path, days: int, severity: str | None) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(end - timedelta(days=900))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    look(tmp_path, GOOD)
    (tmp_path / "file.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    found = [one for one in look(tmp_path, GOOD) if one.rule == "expiry"]
    assert {one.severity for one in found} == ({severity} if severity else set())


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert [one.rule for one in check(tmp_path / "absent", devices=1, limits=LIMITS)] == ["unreadable"]
    assert [one.rule for one in check(tmp_path, devices=1, limits=LIMITS)] == ["unreadable"]
    assert "unreadable" in {one.rule for one in look(tmp_path, GOOD + "include_dir absent\n")}


def test_per_listener_settings_are_each_listeners_own(tmp_path: Path) -> None:
    """One listener asks for a name, the other for none: only the second is complained about."""
    text = (
        "per_listener_settings true\n"
        + GOOD
        + "allow_anonymous false\nplugin a.so\nlistener 1883\nallow_anonymous true\n"
    )
    found = [one for one in look(tmp_path, text) if one.rule in {"anonymous", "no-access-rules"}]
    assert {one.rule for one in found} == {"anonymous", "no-access-rules"}
    assert all("port 1883" in one.what for one in found)


# ------------------------------------------------------------------------------------- what people run

DEBIAN = """
pid_file /run/mosquitto/mosquitto.pid
persistence true
persistence_location /var/lib/mosquitto/
log_dest file /var/log/mosquitto/mosquitto.log
"""
OPEN_IMAGE = "listener 1883\nallow_anonymous true\n"
HOME_AUTOMATION = """
persistence true
persistence_location /mosquitto/data/
log_dest stdout
listener 1883
listener 9001
protocol websockets
password_file file.pem
allow_anonymous false
"""
TUTORIAL_WITH_TLS = """
port 8883
cafile file.pem
certfile file.pem
keyfile file.key
require_certificate true
tls_version tlsv1.1
"""
OLD_HANDS = """
per_listener_settings true
message_size_limit 65536
max_inflight_messages 0
retry_interval 20
max_connections 100
listener 1883 0.0.0.0
acl_file rules
password_file file.pem
"""


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (DEBIAN, {"no-listener", "max-queued-messages"}),
        (OPEN_IMAGE, {"anonymous", "no-tls", "no-access-rules", "max-queued-messages"}),
        (HOME_AUTOMATION, {"no-tls", "no-access-rules", "max-queued-messages"}),
        (
            TUTORIAL_WITH_TLS,
            {"no-revocation", "tls-version", "no-access-rules", "max-queued-messages"},
        ),
        (
            OLD_HANDS,
            {"message-size-limit", "before-any-listener", "no-tls", "max-queued-messages", "no-such-file"}
            | {"nobody-comes-in", "no-access-rules"},
        ),
    ],
    ids=["debian", "open image", "home automation", "tutorial with TLS", "old hands"],
)
def test_what_it_says_of_files_that_people_run(tmp_path: Path, text: str, errors: set[str]) -> None:
    assert {one.rule for one in look(tmp_path, text) if one.severity == "error"} == errors


# ------------------------------------------------------------------------------------- nonsense

WORDS = st.sampled_from([*OPTIONS, "plugin_opt_x", "#", "listener", "", "{", "include_dir"])
VALUES = st.one_of(
    st.text(max_size=40), st.integers().map(str), st.sampled_from(["true", "0", "-1", "8883 ::1", "/", "."])
)
LINES = st.lists(st.tuples(WORDS, VALUES).map(" ".join), max_size=30).map("\n".join)


@given(
    st.one_of(LINES.map(lambda text: text.encode("utf-8", errors="surrogatepass")), st.binary(max_size=400))
)
def test_nonsense_never_breaks_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("nonsense", numbered=True)
    path = folder / "mosquitto.conf"
    path.write_bytes(data.replace(b"include_dir /", b"include_dir ./"))
    for version in (OLD, NEWEST):
        for finding in check(path, devices=10, limits=LIMITS, version=version):
            assert finding.what
            assert finding.mend


@given(st.lists(st.tuples(st.sampled_from(sorted(OPTIONS)), st.integers(0, 9)), max_size=30))
def test_no_line_is_lost_in_reading(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("lines", numbered=True) / "mosquitto.conf"
    kept = [(name, str(value)) for name, value in lines if name != "include_dir"]
    path.write_text("".join(f"{name} {value}\n" for name, value in kept))
    read = sorted((line.number, line.name, line.value) for line in read_file(path).lines)
    assert read == [(number, name, value) for number, (name, value) in enumerate(kept, 1)]


def test_options_of_plugins_are_known() -> None:
    assert option_of("plugin_opt_config_file") is not None
    assert option_of("auth_opt_x") is not None
    assert option_of("plug_opt_x") is None
