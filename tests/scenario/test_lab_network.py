"""The lab's network: lines reach the carrier under their own addresses, and faults do what they say."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from firmware_sim.lab import Cut, Lab, LabError, LabSpec, LineFaults, has_rights, open_lab

pytestmark = pytest.mark.skipif(not has_rights(), reason="the lab makes network namespaces: needs root")

PORT = 7000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(LabSpec(lines=2)) as lab:
        yield lab


@pytest.fixture(scope="module")
def listener(lab: Lab) -> Iterator[socket.socket]:
    """A carrier that tells each caller the address it is seen under."""
    server = lab.carrier.call(
        lambda: socket.create_server((lab.carrier_address, PORT), family=socket.AF_INET6)
    )

    def answer(connection: socket.socket, peer: str) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(peer.encode())
            connection.settimeout(5)  # a caller whose line was cut never says goodbye
            while connection.recv(65536):
                pass

    def serve() -> None:
        with contextlib.suppress(OSError), ThreadPoolExecutor(max_workers=8) as callers:
            while True:
                connection, peer = server.accept()
                callers.submit(answer, connection, peer[0])

    thread = threading.Thread(target=serve)
    thread.start()
    yield server
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


# A program of its own, as the tests' process may only connect to loopback. Prints the peer's words or the error's name.
CLIENT = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
try:
    with socket.create_connection((host, port), timeout=1) as connection:
        print(connection.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error.errno)
"""

UPLOAD = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    started = time.monotonic()
    connection.sendall(bytes(400_000))
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass
    print(time.monotonic() - started)
"""


def connect(lab: Lab, host: str, target: str, port: int = PORT) -> str:
    argv = [sys.executable, "-I", "-S", "-c", CLIENT, target, str(port)]
    return lab.host(host).run(argv, timeout_s=10).stdout.decode().strip()


def seen_address(lab: Lab, host: str) -> str:
    return connect(lab, host, lab.carrier_address)


@pytest.mark.parametrize("line", [1, 2])
def test_gateway_and_nas_speak_from_the_prefix_of_their_line(
    lab: Lab, listener: socket.socket, line: int
) -> None:
    addresses = lab.addresses(line)
    assert addresses.prefix.prefixlen == 56
    assert seen_address(lab, f"gw{line}") == addresses.wan
    assert seen_address(lab, f"nas{line}") == addresses.nas


def test_the_nas_reaches_its_gateway_by_ipv4_and_by_ula(lab: Lab) -> None:
    for address in ("192.168.1.1", lab.addresses(1).ula_gateway):
        assert connect(lab, "nas1", address).startswith("ConnectionRefusedError")


def test_there_is_no_way_to_the_carrier_over_ipv4(lab: Lab) -> None:
    assert connect(lab, "nas1", "192.0.2.10") == f"OSError {errno.ENETUNREACH}"


def test_a_forged_source_is_dropped_and_counted(lab: Lab, listener: socket.socket) -> None:
    before = lab.forged_packets()
    lab.forge(2, source=lab.addresses(1).wan, port=PORT)
    wait_until(lambda: lab.forged_packets() == before + 2)


def test_a_true_source_of_the_same_packets_is_not_counted(lab: Lab, listener: socket.socket) -> None:
    # The other half of the test above: the counter counts the lie, not the packet.
    before = lab.forged_packets()
    lab.forge(2, source=lab.addresses(2).wan, port=PORT)
    assert seen_address(lab, "gw2") == lab.addresses(2).wan
    assert lab.forged_packets() == before


def test_the_packets_of_forge_are_sound_so_that_only_their_source_stops_them(lab: Lab) -> None:
    # Without this a broken checksum would look like a working filter.
    with lab.carrier.call(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as datagrams:
        datagrams.bind((lab.carrier_address, 7009))
        datagrams.settimeout(5)
        lab.forge(2, source=lab.addresses(1).wan, port=7009)
        lab.forge(2, source=lab.addresses(2).wan, port=7009)
        assert datagrams.recvfrom(100)[1][0] == lab.addresses(2).wan


@pytest.mark.parametrize("how", [Cut.LINK_DOWN, Cut.SILENT])
def test_a_cut_line_is_dead_and_the_other_lives_until_it_is_restored(
    lab: Lab, listener: socket.socket, how: Cut
) -> None:
    lab.cut(1, how)
    try:
        assert "Error" in seen_address(lab, "nas1")
        assert seen_address(lab, "nas2") == lab.addresses(2).nas
    finally:
        lab.restore(1)
    assert seen_address(lab, "nas1") == lab.addresses(1).nas


def test_renumbering_moves_the_line_and_leaves_the_lan_alone(lab: Lab, listener: socket.socket) -> None:
    old = lab.addresses(1)
    new = lab.renumber(1)
    assert (new.prefix, new.wan) != (old.prefix, old.wan)
    assert (new.ula_gateway, new.ula_nas) == (old.ula_gateway, old.ula_nas)
    assert seen_address(lab, "gw1") == new.wan
    assert seen_address(lab, "nas1") == new.nas
    before = lab.forged_packets()
    lab.forge(1, source=old.wan, port=PORT)
    wait_until(lambda: lab.forged_packets() == before + 2)


def test_a_line_renumbered_while_cut_comes_back_under_its_new_prefix(
    lab: Lab, listener: socket.socket
) -> None:
    lab.cut(2)
    new = lab.renumber(2)
    lab.restore(2)
    assert seen_address(lab, "gw2") == new.wan


def test_a_lost_packet_is_lost_in_both_directions_and_only_on_its_line(
    lab: Lab, listener: socket.socket
) -> None:
    lab.set_faults(1, LineFaults(loss_permille=1000))
    try:
        assert "Error" in seen_address(lab, "gw1")
        assert seen_address(lab, "gw2") == lab.addresses(2).wan
    finally:
        lab.set_faults(1, LineFaults())
    assert seen_address(lab, "gw1") == lab.addresses(1).wan


def test_a_rate_limit_holds_an_upload_to_its_rate(lab: Lab, listener: socket.socket) -> None:
    def upload() -> float:
        argv = [sys.executable, "-I", "-S", "-c", UPLOAD, lab.carrier_address, str(PORT)]
        return float(lab.gateway(1).run(argv, timeout_s=30).stdout)

    free_s = upload()
    lab.set_faults(1, LineFaults(rate_bits_per_s=4_000_000))
    try:
        limited_s = upload()
    finally:
        lab.set_faults(1, LineFaults())
    # 400 kB at 4 Mbit/s are 0.8 s, less the bucket's first 32 kB and what one line's queue holds.
    assert free_s < 0.4 < limited_s < 3


def round_trip_s(lab: Lab, host: str) -> float:
    code = (
        "import socket, sys, time\n"
        "started = time.monotonic()\n"
        "socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10).close()\n"
        "print(time.monotonic() - started)"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, lab.carrier_address, str(PORT)]
    return float(lab.host(host).run(argv, timeout_s=20).stdout)


def test_a_delay_is_added_in_both_directions_and_taken_away_again(lab: Lab, listener: socket.socket) -> None:
    lab.set_faults(1, LineFaults(delay_ms=60))
    try:
        round_trip_s(lab, "nas1")  # neighbours are asked for first, which costs round trips of their own
        assert 0.12 <= round_trip_s(lab, "nas1") < 0.5
        assert round_trip_s(lab, "nas2") < 0.1
        assert seen_address(lab, "gw1") == lab.addresses(1).wan
        lab.cut(1)
        assert "Error" in seen_address(lab, "nas1")
        lab.restore(1)
        assert seen_address(lab, "gw1") == lab.addresses(1).wan
    finally:
        lab.set_faults(1, LineFaults())
    assert round_trip_s(lab, "nas1") < 0.1


def test_a_published_port_reaches_the_host_from_this_machine(lab: Lab, listener: socket.socket) -> None:
    port = lab.publish("gw2", lab.carrier_address, PORT)
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            assert connection.recv(100).decode() == lab.addresses(2).wan


def test_a_published_port_that_nobody_serves_is_a_closed_connection(lab: Lab) -> None:
    port = lab.publish("gw2", lab.carrier_address, PORT + 99)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        assert connection.recv(100) == b""


def test_there_are_only_the_lines_that_were_asked_for(lab: Lab) -> None:
    with pytest.raises(LabError, match="1…2"):
        lab.cut(3)
    with pytest.raises(LabError, match="gw3"):
        lab.gateway(3)


def wait_until(condition, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
