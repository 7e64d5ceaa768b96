"""Round trips of the vault format over generated values, and no other exception than the documented ones on any bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nas_agent.core.chunking import CHUNK_MAX, CHUNK_MIN, Compressor, cut, make_chunker
from wire.errors import WireError
from wire.signing import SigningKey
from wire.vault.entry import Entry, Kind, Span, decode_entry, encode_entry, sort_key
from wire.vault.frame import (
    Algorithm,
    Codec,
    FrameSealer,
    chunk_id,
    frame_body,
    frame_bytes,
    open_frame,
    parse_frame_header,
)
from wire.vault.manifest import ManifestReader, ManifestWriter, decode_items, encode_items
from wire.vault.pack import PackItem, pack_header, parse_trailer, sign_trailer, trailer_length, verify_pack
from wire.vault.root import GenerationRoot, Manifest, check_chain, open_root
from wire.vault.session import open_header

KEY, SESSION = SigningKey(b"\x21" * 32), b"\x05" * 16
NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in {b".", b".."}
)


@given(st.binary(min_size=1, max_size=5000), st.sampled_from(Algorithm), st.integers(0, 2**63), st.randoms())
def test_any_chunk_survives_a_frame(data, algorithm, counter, random) -> None:
    session_key, id_key, salt = random.randbytes(32), random.randbytes(32), random.randbytes(32)
    sealer = FrameSealer(session=SESSION, session_key=session_key, salt=salt, algorithm=algorithm)
    sealer._counter = counter
    body = Compressor().body(data)
    out = memoryview(bytearray(len(body) + 200))
    frame = bytes(out[: sealer.seal(chunk_id(id_key, data), body, out)])
    assert open_frame(frame, parse_frame_header(frame), session_key=session_key, id_key=id_key) == data
    assert len(frame) <= frame_bytes(len(data))


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20, unique=True))
def test_a_pack_tells_where_its_frames_are(chunks) -> None:
    sealer = FrameSealer(
        session=SESSION, session_key=bytes(32), salt=bytes(32), algorithm=Algorithm.AES_256_GCM
    )
    data, items = bytearray(pack_header(SESSION)), []
    for chunk in chunks:
        out = memoryview(bytearray(1000))
        length = sealer.seal(chunk_id(bytes(32), chunk), frame_body(Codec.RAW, len(chunk), chunk), out)
        items.append(PackItem(chunk_id(bytes(32), chunk), len(data), length))
        data += out[:length]
    data += sign_trailer(KEY, session=SESSION, body_sha256=hashlib.sha256(data).digest(), items=items)
    trailer = verify_pack(data, name=hashlib.sha256(data).hexdigest(), device_key=KEY.public)
    assert trailer.items == tuple(items)
    for item, chunk in zip(trailer.items, chunks, strict=True):
        frame = bytes(data[item.offset : item.offset + item.length])
        assert open_frame(frame, parse_frame_header(frame), session_key=bytes(32), id_key=bytes(32)) == chunk


@st.composite
def entries(draw) -> Entry:
    spans = draw(st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 2**20)), max_size=4))
    gap = draw(st.integers(0, 2**40))
    size = sum(length for _, length in spans) + gap
    return Entry(
        path=b"/".join(draw(st.lists(NAMES, min_size=1, max_size=4))),
        kind=Kind.FILE,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        user=draw(st.binary(max_size=20)),
        mtime_ns=draw(st.integers(-(2**62), 2**62)),
        size=size,
        xattrs=tuple(draw(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=50)), max_size=3))),
        link_group=draw(st.integers(0, 2**64 - 1)),
        holes=((size - gap, gap),) if gap else (),
        content=tuple(Span(os.urandom(32), offset, length) for offset, length in spans),
    )


@given(entries())
def test_any_entry_survives_its_record(entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@given(st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=30), st.integers(1, 4000))
@settings(deadline=None)
def test_any_tree_survives_a_manifest_in_any_pieces(paths, piece) -> None:
    directories = {path[:depth] for path in paths for depth in range(len(path))} | {()}
    listed = sorted({b"/".join(path) for path in paths | directories}, key=sort_key)
    tree = [
        Entry(
            path=path,
            kind=Kind.DIRECTORY if tuple(path.split(b"/")) in directories or not path else Kind.FIFO,
            mode=0,
            uid=0,
            gid=0,
            mtime_ns=0,
        )
        for path in listed
    ]
    writer, reader = ManifestWriter(), ManifestReader()
    chunks = [chunk for entry in tree for chunk in writer.add(entry)] + writer.finish()
    data = b"".join(chunks)
    found = [
        entry for start in range(0, len(data), piece) for entry in reader.feed(data[start : start + piece])
    ]
    reader.finish()
    assert found == tree
    assert reader.total_bytes == writer.total_bytes == len(data)


def test_sort_key_is_depth_first_with_children_by_byte_value() -> None:
    paths = [b"", b"a", b"a/\x01", b"a/b", b"a/b/c", b"a\x01", b"a!", b"a.b", b"b"]
    shuffled = [paths[index] for index in (3, 0, 7, 5, 1, 8, 2, 6, 4)]
    assert sorted(shuffled, key=sort_key) == paths


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, 1 << 20)), min_size=1))
def test_chunk_lists_survive(items) -> None:
    assert decode_items(encode_items(items)) == items


@given(st.binary(max_size=400))
@example(b"\x00" * 100)
def test_no_other_exception_leaves_the_parsers(data) -> None:
    for parse in (
        decode_entry,
        decode_items,
        lambda d: list(ManifestReader().feed(d)),
        parse_frame_header,
        parse_trailer,
        lambda d: trailer_length(d[:8]),
        lambda d: open_root(d, device_key=KEY.public),
        lambda d: open_header(d, contract_sign_key=KEY.public),
        lambda d: verify_pack(d, name=hashlib.sha256(d).hexdigest()),
    ):
        with contextlib.suppress(WireError):
            parse(data)


def make_root(sequence: int, parent: str | None, history: tuple[tuple[int, str], ...] = ()) -> GenerationRoot:
    return GenerationRoot(
        contract="c",
        backup_set="s",
        device_key="0" * 64,
        epoch="0" * 32,
        sequence=sequence,
        session="0" * 32,
        created_at=0,
        parent=parent,
        history=history,
        manifest=Manifest(depth=0, items=(), bytes=0),
        files=0,
        logical_bytes=0,
        complete=True,
        refs_count=0,
        refs_sha256="0" * 64,
    )


CHAIN = {"h1": make_root(1, None), "h2": make_root(2, "h1"), "h3": make_root(3, "h2", ((2, "h2"), (1, "h1")))}


def without(*names: str) -> dict[str, GenerationRoot]:
    return {name: root for name, root in CHAIN.items() if name not in names}


def test_a_whole_chain_holds() -> None:
    verdict = check_chain(CHAIN, anchor=(3, "h3"))
    assert (verdict.refusal, verdict.absent) == (None, ())


def test_expired_generations_are_absent_not_refused() -> None:
    assert check_chain(without("h1", "h2")).absent == (1, 2)


def test_contradictions_are_named() -> None:
    table = {
        "chain-broken": [
            ({**without("h2"), "x2": make_root(2, "h1")}, None),
            ({**without("h1"), "x1": make_root(1, None)}, None),
            ({**without("h2", "h1"), "x1": make_root(1, None)}, None),
            (CHAIN, (3, "other")),
            ({"f": make_root(2, None, ((5, "h5"),))}, None),
        ],
        "chain-fork": [({**CHAIN, "x3": make_root(3, "h2")}, None)],
        "generation-hidden": [(without("h3"), (3, "h3")), ({}, (1, "h1"))],
    }
    for refusal, cases in table.items():
        for roots, anchor in cases:
            assert check_chain(roots, anchor=anchor).refusal == refusal


CUTS_A = [338936, 287706, 297048, 362463, 844206, 131672, 158720, 213154, 315200, 250895]
CUTS_B = [254643, 127468, 450256, 233528, 431874, 149943, 282428, 84108, 705628, 135012, 345112]
GOLDEN_CUTS = {0x123456789ABCDEF: CUTS_A, 7: CUTS_B}


def golden_data() -> bytes:
    return b"".join(hashlib.sha256(b"golden%d" % number).digest() for number in range(100_000))


def test_cut_points_are_those_of_the_golden_vectors() -> None:
    for seed, lengths in GOLDEN_CUTS.items():
        assert cut(make_chunker(seed), memoryview(golden_data()), at_end=True) == lengths


@given(st.integers(1, 2**63 - 1), st.integers(CHUNK_MAX + 1, 3 << 20))
@settings(max_examples=10, deadline=None)
def test_cutting_in_pieces_gives_the_same_cuts(seed, piece) -> None:
    data = memoryview(golden_data())
    whole = cut(make_chunker(seed), data, at_end=True)
    lengths, start, end, chunker = [], 0, 0, make_chunker(seed)
    while start < len(data):
        end = min(end + piece, len(data))
        part = cut(chunker, data[start:end], at_end=end == len(data))
        lengths += part
        start += sum(part)
    assert lengths == whole
    assert all(CHUNK_MIN <= length <= CHUNK_MAX for length in whole[:-1])
