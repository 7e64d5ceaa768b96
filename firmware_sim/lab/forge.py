"""Make and send IPv6 packets whose source address is a lie, as an attacker on a line would (threats L1 and L2).

The bytes are built here, so that no kernel corrects them. Nothing waits for an answer: a forged source never gets
one; the proof is the router's counter (`Lab.forged_packets`).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Literal

_HOP_LIMIT = 64
_UDP, _TCP = 17, 6
_SOURCE_PORT = 40_000
_SYN = 0x02


def forged_packet(source: str, target: str, port: int, kind: Literal["udp", "syn"]) -> bytes:
    """Return an IPv6 packet from `source`: a UDP datagram of 4 bytes, or a TCP SYN.

    Args:
        source: the address claimed, any IPv6 text form.
        target: where it goes.
        port: target port, 1…65535.
        kind: what is inside.
    """
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(target).packed
    if kind == "udp":
        protocol, body, place = _UDP, struct.pack(">HHHH4s", _SOURCE_PORT, port, 12, 0, b"hgw!"), 6
    else:
        body = struct.pack(">HHIIBBHHH", _SOURCE_PORT, port, 1, 0, 5 << 4, _SYN, 65_535, 0, 0)
        protocol, place = _TCP, 16
    checksum = _checksum(addresses + struct.pack(">II", len(body), protocol) + body)
    body = body[:place] + struct.pack(">H", checksum) + body[place + 2 :]
    return struct.pack(">IHBB", 6 << 28, len(body), protocol, _HOP_LIMIT) + addresses + body


def send_packet(packet: bytes) -> None:
    """Send a complete IPv6 packet from the network this thread stands in (see `Host.call`)."""
    target = str(ipaddress.IPv6Address(packet[24:40]))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (target, 0))


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF
