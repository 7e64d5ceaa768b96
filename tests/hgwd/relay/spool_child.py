"""A process for the kill test: the relay on a directory, forwarding to a "service" that is another directory.

Usage: spool_child.py DIRECTORY [DEVICE TOKEN SESSION]; prints `port device token session` when it serves.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[2])]

import trio  # noqa: E402
from relay_kit import Answer, FakeService, Nas, open_rig  # noqa: E402

from runtime.files import write_atomic  # noqa: E402


class DirectoryService(FakeService):
    """Stores what it is sent with fsync, slowly and in no steady rhythm."""

    async def put_pack(self, session, token, pack, path, size_bytes):
        await trio.sleep(random.random() / 50)
        data = path.read_bytes()
        await trio.to_thread.run_sync(write_atomic, self.directory / pack, data)
        return Answer(201)


async def main(directory, device="", token="", session=""):
    service = DirectoryService()
    service.directory = directory / "service"
    service.directory.mkdir(exist_ok=True)
    async with open_rig(directory, bytes_max=64 << 20, service=service) as rig:
        if not device:
            nas = await rig.pair()
            device, token, session = nas.device, nas.token, await Nas.open(nas)
        rig.forward()
        print(rig.port, device, token, session, flush=True)
        await trio.sleep_forever()


trio.run(main, Path(sys.argv[1]), *sys.argv[2:])
