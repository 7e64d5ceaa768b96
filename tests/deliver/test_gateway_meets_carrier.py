"""The gateway's own code against a real `deliver serve`: both meet in wire bytes only, here it shows that they fit."""

from __future__ import annotations

import pytest

from deliver.engines.schema import joint_target
from deliver.services.operators import find_operator
from hgwd.adapters import enrol as gateway
from hgwd.adapters.fetch import CarrierFetch
from hgwd.adapters.metadata import MetadataStore
from hgwd.core.trusted_time import verify_time
from hgwd.core.update import check_manifest, decide_install, entry_target
from hgwd.core.update_director import accept_document, time_keys
from hgwd.core.update_images import ImageRepository
from hgwd.core.update_types import Cause, RefusedError
from runtime.clock import SystemClock
from runtime.http_client import HttpClient
from runtime.tls import client_context
from wire.ids import OperatorId, RandomId
from wire.joint import GatewayReport, OperatorSubmit, RolloutRequest, SoftwareReport
from wire.package_archive import read_package
from wire.signing import generate_key


@pytest.fixture
def clock():
    return SystemClock()


class Gateway:
    """What hgwd does from enrolment to report, without flash slots and launcher."""

    def __init__(self, home, ready, kit, directory):
        ca = client_context(home.directory / "trust" / "tls-ca.pem")
        self.client = HttpClient("::1", ready["gateway_port"], ca, server_name="joint.test")
        self.store = MetadataStore(directory / "metadata")
        self.store.open()
        self.part = directory / "package.part"
        self.fetch = CarrierFetch(self.client, self.store, lambda _size, _traffic: None)
        self.trust = home.directory / "trust"
        self.key = generate_key()
        self.request = gateway.EnrolRequest(serial=kit.SERIAL, model="PR-500", maker="KI", secret=kit.SECRET)

    async def enrol(self):
        answer = await gateway.enrol(self.client, self.key, self.request, SystemClock().now_s())
        self.path = answer.director_path
        self.identity = gateway.identity_of(RandomId.parse(answer.gateway), self.request)

    async def poll(self):
        fresh = await self.fetch.poll(self.path, None)
        root = (self.trust / "director-root.json").read_bytes()
        return await self.fetch.drive(accept_document(root, fresh.data, self.identity, SystemClock().now_s()))

    async def install(self, document, floor_release=0):
        (entry,) = document.body.software
        repository = ImageRepository((self.trust / "image-root.json").read_bytes(), SystemClock().now_s())
        await self.fetch.drive(repository.refresh())
        image = await self.fetch.drive(repository.find_target(entry.target))
        wanted = decide_install(
            entry,
            entry_target(document, entry),
            image,
            url_path=repository.target_url_path(image),
            identity=self.identity,
            floor_release=floor_release,
        )
        await self.fetch.download(wanted, self.part)
        manifest, files = read_package(self.part.read_bytes())
        check_manifest(manifest, wanted, self.identity)
        return files

    async def report(self, state):
        entry = SoftwareReport(software="acme-home/lights", version="1.0", release=1, state=state)
        body = GatewayReport(counter=1, director_version=2, bytes_down=100, software=(entry,))
        return await gateway.report(self.client, self.key, body, SystemClock().now_s())


def roll_out(program, kit):
    order = OperatorSubmit(
        operator="acme-home", software="lights", version="1.0", change="rollout", body_sha256="0" * 64
    )
    with program.database.read() as connection:
        operator = find_operator(connection, OperatorId.parse("acme-home"))
    now_s = int(SystemClock().now_s())
    return program.rollout().roll_out(
        operator, order, RolloutRequest(customers=(kit.CUSTOMER.text,)), now_s=now_s
    )


@pytest.fixture
def contracted(program, acme, kit):
    acme.publish(floor=1)
    kit.add_line(program)
    program.carrier.registry.add_gateway_contract(kit.CUSTOMER, kit.SERIAL, "PR-500", "KI", kit.SECRET)


async def test_from_enrolment_to_report(home, program, contracted, kit, tmp_path):
    async with kit.serving(home) as ready:
        box = Gateway(home, ready, kit, tmp_path)
        async with box.client:
            await box.enrol()
            assert (await box.poll()).body.software == ()
            roll_out(program, kit)
            files = await box.install(await box.poll())
            assert files["app.pyz"].data == b"print('lights')"
            assert await box.report("Active") is None
    with program.database.read() as connection:
        assert connection.execute(joint_target.select()).mappings().one()["state"] == "active"


async def test_the_gateway_believes_the_signed_time(home, program, contracted, kit, tmp_path):
    async with kit.serving(home) as ready:
        box = Gateway(home, ready, kit, tmp_path)
        async with box.client:
            nonce, blob = await gateway.ask_time(box.client)
            keys = await box.fetch.drive(time_keys((box.trust / "director-root.json").read_bytes()))
            now_s = SystemClock().now_s()
            assert abs(verify_time([blob], nonce, keys, now_s=now_s, machine_s=now_s) - now_s) < 60


async def test_thief_of_the_director_key_brings_no_downgrade_below_a_floor(
    home, program, contracted, kit, tmp_path
):
    """Holder of {director}: may pick among operator-signed packages, but not below the floor the gateway has seen."""
    async with kit.serving(home) as ready:
        box = Gateway(home, ready, kit, tmp_path)
        async with box.client:
            await box.enrol()
            roll_out(program, kit)
            document = await box.poll()
            with pytest.raises(RefusedError) as caught:
                await box.install(document, floor_release=2)
    assert caught.value.cause is Cause.BELOW_FLOOR
