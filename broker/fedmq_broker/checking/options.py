"""The options that Mosquitto 2.0 and 2.1 know: kind of value, where each holds, since when, and what replaced it.

From mosquitto.conf(5) and `conf.c` of 2.0.11, 2.0.22 and 2.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["flag", "number", "text"]
Scope = Literal["global", "listener", "security", "bridge"]
"""`security`: of each listener where `per_listener_settings` is true, else global."""
Version = tuple[int, ...]

NEWEST: Final[Version] = (2, 1, 2)
_ALWAYS: Final[Version] = (1, 6)


@dataclass(frozen=True)
class Option:
    """What is known of one option.

    Attributes:
        kind: `flag` takes true or false (or 1 and 0); of a `number` Mosquitto reads the leading digits.
        scope: where it holds.
        since: the first version that knows it; others refuse to start.
        outdated: the version since which it is deprecated or without effect, and what to write instead.
        repeats: whether it may stand there more than once, each adding to the others.
    """

    kind: Kind
    scope: Scope
    since: Version = _ALWAYS
    outdated: tuple[Version, str] | None = None
    repeats: bool = False


def _names(
    kind: Kind, scope: Scope, names: str, *, since: Version = _ALWAYS, repeats: bool = False
) -> dict[str, Option]:
    return {name: Option(kind, scope, since, repeats=repeats) for name in names.split()}


def _outdated(kind: Kind, scope: Scope, name: str, version: Version, mend: str) -> dict[str, Option]:
    return {name: Option(kind, scope, outdated=(version, mend), repeats=name == "clientid_prefixes")}


OPTIONS: Final[dict[str, Option]] = {
    **_names(
        "flag",
        "global",
        "allow_duplicate_messages auth_plugin_deny_special_chars autosave_on_changes check_retain_source"
        " connection_messages log_timestamp persistence queue_qos0_messages retain_available retained_persistence"
        " set_tcp_nodelay upgrade_outgoing_qos",
    ),
    **_names(
        "number",
        "global",
        "autosave_interval log_facility max_inflight_bytes max_inflight_messages max_keepalive max_packet_size"
        " max_queued_bytes max_queued_messages memory_limit sys_interval websockets_headers_size websockets_log_level",
    ),
    **_names(
        "text",
        "global",
        "log_timestamp_format persistence_file persistence_location persistent_client_expiration pid_file user",
    ),
    **_names("text", "global", "include_dir log_dest log_type connection", repeats=True),
    **_names("number", "global", "retain_expiry_interval", since=(2, 0, 12)),
    **_names("flag", "global", "enable_control_api", since=(2, 1)),
    **_names(
        "number", "global", "global_max_clients global_max_connections packet_buffer_size", since=(2, 1)
    ),
    **_names("text", "global", "plugin_load global_plugin", since=(2, 1), repeats=True),
    # ------------------------------------------------------------------------------ who comes in
    **_names("flag", "security", "allow_anonymous allow_zero_length_clientid"),
    **_names("text", "security", "auto_id_prefix psk_file"),
    **_names("text", "security", "plugin", repeats=True),
    **_outdated("text", "security", "auth_plugin", (2, 0), "write plugin instead"),
    **_outdated(
        "text",
        "security",
        "acl_file",
        (2, 1),
        "the dynamic-security plugin does the same, refuses a SUBSCRIBE, and cuts off who is removed",
    ),
    **_outdated(
        "text",
        "security",
        "password_file",
        (2, 1),
        "use the password-file plugin, or the dynamic-security plugin",
    ),
    **_outdated(
        "flag",
        "global",
        "per_listener_settings",
        (2, 1),
        "use listener_allow_anonymous, plugin_load and plugin_use; 3.0 knows it no more",
    ),
    **_outdated(
        "text",
        "global",
        "clientid_prefixes",
        (2, 0),
        "tie the client id to the user: use_username_as_clientid true",
    ),
    **_outdated("number", "global", "message_size_limit", (2, 0), "write max_packet_size instead"),
    **_outdated("number", "global", "retry_interval", (1, 5), "take the line out: it does nothing"),
    # ------------------------------------------------------------------------------ listeners
    **_names("text", "listener", "listener", repeats=True),
    **_names(
        "flag",
        "listener",
        "require_certificate use_identity_as_username use_subject_as_username use_username_as_clientid",
    ),
    **_names("number", "listener", "max_connections max_qos maximum_qos max_topic_alias"),
    **_names(
        "text",
        "listener",
        "bind_interface cafile capath certfile ciphers ciphers_tls1.3 crlfile dhparamfile http_dir keyfile mount_point"
        " protocol psk_hint socket_domain tls_engine tls_engine_kpass_sha1 tls_keyform tls_version",
    ),
    **_outdated("text", "listener", "bind_address", (2, 0), "write listener PORT ADDRESS instead"),
    **_outdated("number", "listener", "port", (2, 0), "write listener PORT instead"),
    **_names(
        "flag",
        "listener",
        "disable_client_cert_date_checks listener_allow_anonymous proxy_protocol_v2_require_tls",
        since=(2, 1),
    ),
    **_names("number", "listener", "enable_proxy_protocol max_topic_alias_broker", since=(2, 1)),
    **_names("text", "listener", "accept_protocol_versions listener_auto_id_prefix", since=(2, 1)),
    **_names("text", "listener", "plugin_use websockets_origin", since=(2, 1), repeats=True),
    # ------------------------------------------------------------------------------ bridges
    **_names(
        "flag",
        "bridge",
        "bridge_attempt_unsubscribe bridge_insecure bridge_outgoing_retain bridge_require_ocsp cleansession"
        " local_cleansession notifications notifications_local_only round_robin try_private",
    ),
    **_names("number", "bridge", "bridge_max_packet_size idle_timeout keepalive_interval threshold"),
    **_names(
        "text",
        "bridge",
        "address addresses bridge_alpn bridge_bind_address bridge_cafile bridge_capath bridge_certfile bridge_identity"
        " bridge_keyfile bridge_protocol_version bridge_psk bridge_tls_version clientid local_clientid local_password"
        " local_username notification_topic password remote_clientid remote_password remote_username restart_timeout"
        " start_type username",
    ),
    **_names("text", "bridge", "topic", repeats=True),
    **_names("text", "bridge", "bridge_ciphers bridge_reload_type bridge_tcp_keepalive", since=(2, 1)),
    **_names(
        "number",
        "bridge",
        "bridge_max_topic_alias bridge_receive_maximum bridge_session_expiry_interval bridge_tcp_user_timeout",
        since=(2, 1),
    ),
    **_names("flag", "bridge", "bridge_tls_use_os_certs", since=(2, 1)),
}


def option_of(name: str) -> Option | None:
    """What is known of an option; options of plugins have names of their own behind a prefix."""
    if name.startswith(("plugin_opt_", "auth_opt_")):
        return Option("text", "security", repeats=True)
    return OPTIONS.get(name)


def version_text(version: Version) -> str:
    """As people write it: 2.0.11."""
    return ".".join(map(str, version))
