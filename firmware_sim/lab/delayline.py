"""A wire with a delay, for kernels without netem: two TAP devices in two namespaces, and a heap of frames between.

A program of its own, standard library only, started by `shaping.start_delay_line`:
`delayline.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_MS`. It prints `ready` when both devices exist, carries frames in
both directions, each DELAY_MS later and in order, and ends when its standard input ends; the devices end with it.
Frames beyond `HELD_MAX` in one direction are dropped, as a full queue would.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

FRAME_BYTES_MAX = 65_536
HELD_MAX = 20_000
BATCH_MAX = 256
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


def open_tap(namespace: str, device: str) -> int:
    """Make a TAP device in a namespace and return its non-blocking file descriptor; moves this process there."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(handle, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(handle)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    return tap


def carry(left: int, right: int, delay_s: float) -> None:
    """Move frames between two descriptors until standard input ends."""
    other = {left: right, right: left}
    held: dict[int, collections.deque[tuple[float, bytes]]] = {
        left: collections.deque(),
        right: collections.deque(),
    }
    while True:
        now_s = time.monotonic()
        for target, frames in held.items():
            while frames and frames[0][0] <= now_s:
                _send(target, frames.popleft()[1])
        due_s = min((frames[0][0] for frames in held.values() if frames), default=now_s + 1)
        ready, _, _ = select.select([left, right, 0], [], [], max(0.0, due_s - time.monotonic()))
        if 0 in ready and not os.read(0, 1):
            return
        for source in (left, right):
            if source in ready:
                _receive(source, held[other[source]], delay_s)


def _receive(source: int, frames: collections.deque[tuple[float, bytes]], delay_s: float) -> None:
    for _ in range(BATCH_MAX):
        try:
            frame = os.read(source, FRAME_BYTES_MAX)
        except (BlockingIOError, OSError):
            return
        if len(frames) < HELD_MAX:
            frames.append((time.monotonic() + delay_s, frame))


def _send(target: int, frame: bytes) -> None:
    try:
        os.write(target, frame)
    except OSError:
        return  # a device that is down or full loses the frame, as a wire does


def main() -> None:
    """Open both ends and carry."""
    left_namespace, left_device, right_namespace, right_device, delay_ms = sys.argv[1:]
    left = open_tap(left_namespace, left_device)
    right = open_tap(right_namespace, right_device)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    carry(left, right, int(delay_ms) / 1000)


if __name__ == "__main__":
    main()
