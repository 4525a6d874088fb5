"""paho-mqtt's client on our wire, with a short way for the two packets that come by the thousand.

paho makes a table of all properties that MQTT 5 knows for each packet that it reads, and a lock for each message. For a
PUBLISH without properties and a PUBACK that says nothing but yes, which are nearly all, neither is of use: they are
taken apart here. Whatever is not as plain as that goes to paho, malformed packets among it.

paho's private methods that are touched here: `_create_socket_connection`, by which it gets our wire for a socket,
`_send_simple_command`, `_send_pingreq` and `_handle_pingresp`, and `_handle_publish` and `_handle_pubackcomp`. Should a
later paho not call the latter two any more, all goes its way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import PINGREQ, Client
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from fedmq_protocol.aio_wire import Wire

_RETAIN: Final = 0x01
_DUP: Final = 0x08
_TOPIC_AT: Final = 2
_SUCCESS: Final = ReasonCode(PacketTypes.PUBACK)
_PLAIN_PUBACK_BYTES: Final = 2

Hears = Callable[[bytes, bytes, int, int, bool, bool], None]
"""Topic, payload, packet id, QoS, whether it was retained, whether it is a duplicate."""


class PahoClient(Client):
    """paho-mqtt on a socket that is already connected.

    Attributes:
        wire: the connection.
        hears: called with each plain PUBLISH; what is not plain goes to `on_message`.
        on_pong: called when the broker answers a ping.
        pongs: how many pings it has answered: paho's own and those by `ping`, which it answers in their order.
    """

    wire: Wire
    hears: Hears
    on_pong: Callable[[], None] | None = None
    pongs = 0
    _pings = 0

    def ping(self) -> int:
        """Ask the broker for a sign of life, whenever the last one was. Returns what `pongs` is once it is answered.

        Of this ping paho's keepalive knows nothing: it would give up the connection where the answer takes long, as
        behind a large packet on a slow link, or is lost.
        """
        self._send_simple_command(PINGREQ)
        self._pings += 1
        return self._pings

    def forget(self, mid: int) -> None:
        """Wait no more for the acknowledgement of a message; one that comes all the same is passed over."""
        with self._out_message_mutex:
            self._out_messages.pop(mid, None)

    def _create_socket_connection(self) -> Any:  # noqa: ANN401  # paho says socket.socket and uses five of its methods
        return self.wire

    def _send_pingreq(self) -> MQTTErrorCode:
        self._pings += 1
        return super()._send_pingreq()

    def _handle_pingresp(self) -> MQTTErrorCode:
        answered = super()._handle_pingresp()
        if answered == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self.pongs += 1
            if self.on_pong is not None:
                self.on_pong()
        return answered

    def _handle_publish(self) -> MQTTErrorCode:
        first, packet = self._in_packet["command"], self._in_packet["packet"]
        qos = first >> 1 & 3
        at = _TOPIC_AT + int.from_bytes(packet[:_TOPIC_AT], "big")
        topic = bytes(packet[_TOPIC_AT:at])
        mid = 0
        if qos == 1:
            mid = int.from_bytes(packet[at : at + 2], "big")
            at += 2
        plain = qos <= 1 and len(topic) > 0 and at <= len(packet)
        if plain and self._protocol == MQTTProtocolVersion.MQTTv5:
            plain = packet[at : at + 1] == b"\0"  # the length of the properties
            at += 1
        if not plain:
            return super()._handle_publish()
        self.hears(topic, bytes(packet[at:]), mid, qos, bool(first & _RETAIN), bool(first & _DUP))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Any) -> MQTTErrorCode:  # noqa: ANN401  # "PUBACK" or "PUBCOMP"
        packet = self._in_packet["packet"]
        if cmd != "PUBACK" or len(packet) != _PLAIN_PUBACK_BYTES:
            return super()._handle_pubackcomp(cmd)
        mid = int.from_bytes(packet, "big")
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, _SUCCESS, None)  # type: ignore[arg-type]  # it is handed on to us
        return MQTTErrorCode.MQTT_ERR_SUCCESS
