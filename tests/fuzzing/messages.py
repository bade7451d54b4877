"""Readers of what crosses the network: messages, records, signed and sealed bytes."""

from __future__ import annotations

import json

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from qsfl_flower import testing
from qsfl_flower.asynchrony.ledger import Ledger as TaskLedger
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.enrolment import make_request, read_request
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.identity import create_authority
from qsfl_flower.crypto.keyfile import pack_identity, unpack_identity
from qsfl_flower.crypto.messages import Instruction, Reply
from qsfl_flower.crypto.replay import ReplayCache
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.crypto.sealing import open_sealed, seal
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.statement import Statement, sign_statement
from qsfl_flower.mechanisms.compression.core.mask import pack_leading, unpack_leading
from qsfl_flower.mechanisms.compression.core.record import decode_record, encode_record
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.monitor import MonitorState
from qsfl_flower.numerics.npy import dump_npy
from qsfl_flower.privacy.policy import Protection
from qsfl_flower.secure.dealing import KIND, Header, binding, read_header
from qsfl_flower.secure.pairwise import client as masks
from qsfl_flower.secure.pairwise import server as unmasks
from qsfl_flower.secure.pairwise.terms import Policy
from qsfl_flower.secure.pairwise.terms import Terms as MaskTerms
from qsfl_flower.secure.terms import Terms
from qsfl_flower.wire import Plan, PlanItem, from_record, to_record
from qsfl_flower.wire.bundle import pack, unpack
from qsfl_flower.wire.content import pack_arrays, unpack_arrays
from qsfl_flower.wire.legacy import from_legacy_reply

from .decoder import Decoder, of_json, text_of

NOW = 1_800_000_000
MODEL = {"w": np.ones((2, 3), np.float32), "n": np.array(7)}
TERMS = Terms(
    run=1, round=2, members=("a", "b", "c"), seats=("s", "t", "u"), threshold=2, quorum=3,
    min_clients=3, max_clients=8, bits=20, bound=4.0, clip_norm=1.0,
)  # fmt: skip
_SEVEN = dump_npy(np.array(7))


def array_of(data: bytes) -> object:
    """Read an array as it stands in a message: a head of three lines, then the payload."""
    dtype, shape, stype, payload = (data.split(b"\n", 3) + [b""] * 3)[:4]
    sizes = tuple(int(n) for n in shape.split(b",")[:70] if n.isdigit() and len(n) < 20)
    return from_record({"w": Array(text_of(dtype), sizes, text_of(stype), payload)})


def bundle_of(data: bytes) -> object:
    records = {"0": to_record({"w": np.ones(1)}), "1": MetricRecord({"n": len(data)})}
    index = ConfigRecord({"index": text_of(data)})
    return unpack(RecordDict({"qsfl-bundle": index, **records}))


def legacy_of(data: bytes) -> object:
    status, key, payload = (data.split(b"\n", 2) + [b""] * 2)[:3]
    arrays = {
        "0": Array("", (), "numpy.ndarray", payload),
        "1": Array("", (), text_of(key), _SEVEN),
    }
    content = RecordDict(
        {
            "fitres.status": ConfigRecord({"code": len(status), "message": text_of(status)}),
            "fitres.metrics": ConfigRecord({text_of(key): text_of(status)}),
            "fitres.num_examples": MetricRecord({"num_examples": 3}),
            "fitres.parameters": ArrayRecord(arrays),
        }
    )
    return from_record(from_legacy_reply("train", content, MODEL, "arrays")["arrays"])


def formats() -> list[Decoder]:
    """Readers that need no keys."""
    plan = Plan((PlanItem("clip", {"norm": 1.0}),)).encode().encode()
    roles = Layout.of(MODEL, dict.fromkeys(list(MODEL)[:1], "frozen")).told
    npy = dump_npy(np.arange(6, dtype=np.float32).reshape(2, 3))
    sparse, *_ = encode_record(np.ones(4), 64, np.arange(4) * 9, values_format="float16", zstd=True)
    whole, *_ = encode_record(np.linspace(-1, 1, 64), 64, None, values_format="float32")
    index = pack({3: RecordDict({"x": to_record(MODEL)})}).config_records["qsfl-bundle"]["index"]
    promise = Protection(
        placement="record", clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, releases=5,
        delta=1e-5,
    )  # fmt: skip
    return [
        Decoder("array", (b"float32\n2,3\nnumpy.ndarray\n" + npy,), array_of),
        Decoder("plan", (plan,), lambda d: Plan.decode(text_of(d))),
        Decoder("roles of arrays", (roles.encode(),), lambda d: Layout.read(MODEL, text_of(d))),
        Decoder("frame of arrays", (pack_arrays(to_record(MODEL)),),
                lambda d: from_record(unpack_arrays(d))),
        Decoder("bundle", (str(index).encode(), b'{"3": [2, "x"]}'), bundle_of),
        Decoder("legacy reply", (b"\nnumpy.ndarray\n" + npy,), legacy_of),
        Decoder("compressed record", (sparse, whole), lambda d: decode_record(d, 64)),
        Decoder("leading coordinates", (pack_leading(np.arange(9), 64),),
                lambda d: unpack_leading(d, 64)),
        Decoder("terms of a committee", (TERMS.encode().encode(),), of_json(Terms.decode)),
        Decoder("promise of privacy", (json.dumps(promise.to_dict()).encode(),),
                of_json(Protection.from_dict)),
        Decoder("monitor state", (json.dumps(MonitorState((1.0,), (2.0,)).to_dict()).encode(),),
                of_json(MonitorState.from_dict)),
        Decoder("task ledger", (json.dumps(TaskLedger().to_dict()).encode(),
                b'{"given":2,"open":[[1,0,3,0.5,null]],"overdue":[],"misses":[[0,1]]}'),
                of_json(TaskLedger.from_dict)),
    ]  # fmt: skip


def signed_and_sealed() -> list[Decoder]:
    """Readers of what carries a signature or is encrypted; what is inside is signed anew."""
    testing.inside_run()
    made = create_federation(("a", "b", "c", "d", "e"), now=NOW)
    roster = open_roster(made.roster, made.authority)
    one, two = made.clients["a"], made.clients["b"]
    authority = create_authority("authority")
    signing = one.keys[0].signing
    suite = one.public().suite
    session = Session("client", 1, 2, "a", "server", suite, Secret(bytes(32)), NOW + 9, 9, NOW)
    other = Session("server", 1, 2, "a", "server", suite, Secret(bytes(32)), NOW + 9, 9, NOW)
    storage, bound = Secret(bytes(32)), binding(TERMS, "a", "b")
    sealed = seal(roster.encryption_key("b", NOW), b"payload", bound)
    zero = TERMS.zero_sets
    header = Header("a", TERMS.digest, 2, bytes(32), 5, (bytes(32),) * 3,
                    (bytes(32),) * len(zero.sets if zero else ()))  # fmt: skip
    terms = MaskTerms(1, 1, ("a", "b", "c", "d"), 3, 3)
    parties = {terms.places[n]: Credentials(made.clients[n], roster) for n in terms.names}
    dealt = {p: masks.deal(terms, bytes(32), c, Policy(0.0), NOW) for p, c in parties.items()}
    deals = {
        p: unmasks.read_deal(terms, p, d, bytes(32), roster, NOW) for p, (_, d) in dealt.items()
    }
    relayed = unmasks.relay(terms, deals, 0)
    state, lockers = masks.mask(
        dealt[0][0], relayed, np.zeros(4, np.uint32), parties[0], Policy(0.0), NOW
    )
    survivors = unmasks.survivor_list(terms, range(4))
    state, released = masks.release(state, survivors, Policy(0.0))
    request = make_request(one)
    inside = Statement.read(request, "enrolment").body
    asked = Instruction(1, 2, 2, "train", bytes(32), NOW, NOW + 60)
    answer = Reply(
        run=1, round=2, model_version=2, node=3, instruction=bytes(32), content=bytes(32)
    )
    seen = ReplayCache().admit(1, "server", 0, bytes(16))

    def resigned(kind: str, body: bytes, signer: str = "a", key=signing) -> bytes:
        return sign_statement(kind, signer, key, body[: 1 << 16])

    return [
        Decoder("statement", (sign_statement("shares", "a", signing, b"body"),),
                lambda d: Statement.read(d, "shares")),
        Decoder("instruction", (asked.encode(),), Instruction.decode),
        Decoder("reply", (answer.encode(),), Reply.decode),
        Decoder("replay memory", (seen.encode(),), ReplayCache.decode),
        Decoder("roster", (roster.encode(),),
                lambda d: open_roster(resigned("roster", d, "authority", authority.signing),
                                      authority.public)),
        Decoder("enrolment", (inside,), lambda d: read_request(resigned("enrolment", d))),
        Decoder("enrolment request", (request,), read_request),
        Decoder("packed identity", (pack_identity(two).reveal(),),
                lambda d: unpack_identity(Secret(d))),
        Decoder("sealed payload", (sealed,),
                lambda d: open_sealed(two.decryption_keys, d, bound)),
        Decoder("saved session", (session.save(storage),), lambda d: Session.restore(d, storage)),
        Decoder("session frame", (other.sealer("update").seal(b"payload", 2),),
                lambda d: session.open(d, 2, "update")),
        Decoder("header of shares", (header.encode(),),
                lambda d: read_header(resigned(KIND, d), TERMS, roster, NOW)),
        Decoder("terms of masks", (terms.encode(),), MaskTerms.decode),
        Decoder("state of masks", (dealt[0][0].encode(), state.encode()), masks.Client.decode),
        Decoder("deal of masks", (dealt[0][1],),
                lambda d: unmasks.read_deal(terms, 0, d, bytes(32), roster, NOW)),
        Decoder("relay of masks", (relayed,),
                lambda d: masks.mask(dealt[0][0], d, np.zeros(4, np.uint32), parties[0],
                                     Policy(0.0), NOW)),
        Decoder("lockers of masks", (lockers,),
                lambda d: unmasks.read_lockers(terms, deals, 0, d)),
        Decoder("release of masks", (released,),
                lambda d: unmasks.read_release(terms, deals, range(4), 0, d)),
    ]  # fmt: skip
