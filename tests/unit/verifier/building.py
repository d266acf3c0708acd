"""Leaves, good stories of them, and whole logs in a directory, made with the package's own writing side."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from expunge_verify import dsse, merkle, notes, proof, tiles
from expunge_verify import leaf as leaves

Leaf = dict[str, Any]  # Any: JSON
ORIGIN = "erasure.example/log/acme"
SIGNER = notes.Signer(ORIGIN, bytes(range(32)))
VKEY = str(SIGNER.vkey)
CERTIFICATE_SEED = bytes(range(100, 132))
RECEIVED, DUE = "2027-01-31", "2027-02-28"


def digest(name: str) -> str:
    """Stands for the digest of weights or of a certificate of this name."""
    return f"sha256:{sha256(name.encode()).hexdigest()}"


def ref(name: str) -> str:
    return sha256(f"ref {name}".encode()).hexdigest()[:32]


def model(before: str | None = None, after: str | None = None) -> dict[str, str]:
    return {key: digest(name) for key, name in (("from", before), ("to", after)) if name}


class Teller:
    """Makes leaves that differ in everything random, and the same ones each time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, kind: str, /, **fields: Any) -> Leaf:
        """A leaf of this type with the fields that every leaf of it has; a field given as None is left out."""
        self.count += 1
        seed = sha256(f"leaf {self.count}".encode()).hexdigest()
        random = {"nonce": seed[:32], "commit": sha256(seed.encode()).hexdigest()}
        common = {"v": 1, "log": ORIGIN, "type": kind, "day": RECEIVED, **random}
        known = {name: value for name, value in common.items() if name in leaves.SCHEMA[kind].kinds}
        return {name: value for name, value in {**known, **fields}.items() if value is not None}


def opening(tell: Teller) -> list[Leaf]:
    return [
        tell("log.opened", vkey=VKEY, schema=leaves.SCHEMA_DIGEST),
        tell("model.registered", model=model(after="m0")),
    ]


def changing(
    tell: Teller, before: str = "m0", after: str = "m1", *, level: str = "A2", method: str = "influence-newton/1"
) -> list[Leaf]:
    """A model is unlearned from, tested and promoted."""
    change = model(before, after)
    return [
        tell("unlearn.done", model=change, method=method),
        tell("verify.passed", model=change, level=level),
        tell("model.promoted", model=change),
        tell("model.retired", model=model(before)),
    ]


def completed(tell: Teller, name: str, before: str = "m0", after: str = "m1") -> list[Leaf]:
    """A person's whole story: one model changed, one without data."""
    who, cert = ref(name), digest(f"certificate {name}")
    return [
        tell("request.received", ref=who, due=DUE),
        tell("request.identity_confirmed", ref=who),
        tell("erasure.started", ref=who),
        *changing(tell, before, after),
        tell("erasure.done", ref=who, model=model(before, after), method="influence-newton/1", level="A2"),
        tell("erasure.done", ref=who, model=model(after="m0"), method="no-data/1", level="none"),
        tell("key.shredded", ref=who),
        tell("certificate.issued", ref=who, cert=cert),
        tell("request.closed", ref=who, outcome="completed", in_time=True, cert=cert),
        tell("recipients.notified", ref=who),
        tell("key.backup_expired", ref=who),
    ]


def ended(tell: Teller, name: str, outcome: str) -> list[Leaf]:
    """A request that was withdrawn or refused."""
    who = ref(name)
    return [
        tell("request.received", ref=who, due=DUE),
        tell(f"request.{outcome}", ref=who),
        tell("key.shredded", ref=who),
        tell("request.closed", ref=who, outcome=outcome, in_time=True),
    ]


def no_data(tell: Teller, name: str) -> list[Leaf]:
    who, cert = ref(name), digest(f"certificate {name}")
    return [
        tell("request.received", ref=who, due=DUE),
        tell("erasure.started", ref=who),
        tell("erasure.done", ref=who, model=model(after="m0"), method="no-data/1", level="none"),
        tell("key.shredded", ref=who),
        tell("certificate.issued", ref=who, cert=cert),
        tell("request.closed", ref=who, outcome="no_data", in_time=True, cert=cert),
    ]


def partial(tell: Teller, name: str, before: str = "m0", after: str = "m1") -> list[Leaf]:
    """A person's story where one model was refused before work began, and the other one forgets."""
    who = ref(name)
    told = [leaf for leaf in completed(tell, name, before, after) if leaf.get("method") != "no-data/1"]
    refused = [told[0], tell("request.refused", ref=who), *told[2:]]
    return [{**leaf, **({"outcome": "partial"} if leaf["type"] == "request.closed" else {})} for leaf in refused]


def suspended(tell: Teller, name: str) -> list[Leaf]:
    """A person whose month began when somebody vouched for them, three weeks after receipt."""
    who, later = ref(name), "2027-02-21"
    told = [{**leaf, "day": later} for leaf in completed(tell, name)]
    told[0] = {**told[0], "day": RECEIVED}
    told[1] = tell("request.identity_confirmed", ref=who, day=later, due="2027-03-21")
    return [leaf if leaf["type"] != "request.closed" else {**leaf, "day": "2027-03-21"} for leaf in told[:-2]]


def reopened(tell: Teller, name: str, before: str = "m1", after: str = "m2") -> list[Leaf]:
    """What follows ``completed`` when the model is rolled back to one that still knows the person."""
    who, cert = ref(name), digest(f"second certificate {name}")
    return [
        tell("model.rolled_back", model=model(before, "m0")),
        tell("request.reopened", ref=who, due="2027-04-30", day="2027-03-31"),
        tell("erasure.started", ref=who, day="2027-03-31"),
        *changing(tell, "m0", after, level="A0", method="retrain/1"),
        tell("erasure.done", ref=who, model=model("m0", after), method="retrain/1", level="A0", day="2027-04-30"),
        tell("certificate.issued", ref=who, cert=cert, day="2027-04-30"),
        tell("request.closed", ref=who, outcome="completed", in_time=True, cert=cert, day="2027-04-30"),
    ]


def shared(tell: Teller, name: str, holder: str = "m1") -> list[Leaf]:
    """A person whose samples all went with somebody else's request."""
    who, cert = ref(name), digest(f"certificate {name}")
    return [
        tell("request.received", ref=who, due=DUE),
        tell("erasure.started", ref=who),
        tell("erasure.done", ref=who, model=model(after=holder), method="already-forgotten/1", level="none"),
        tell("key.shredded", ref=who),
        tell("certificate.issued", ref=who, cert=cert),
        tell("request.closed", ref=who, outcome="completed", in_time=True, cert=cert),
    ]


def good_log() -> list[Leaf]:
    """Every kind of story that ends well, in one log."""
    tell = Teller()
    return [
        *opening(tell),
        *completed(tell, "a"),
        *ended(tell, "w", "withdrawn"),
        *ended(tell, "r", "refused"),
        *no_data(tell, "n"),
        *shared(tell, "s"),
        *reopened(tell, "a"),
        tell("config.changed"),
    ]


def encoded(story: Iterable[Leaf]) -> list[bytes]:
    return [leaves.encode(leaf) for leaf in story]


class Tree:
    """A log in memory: entries, signed checkpoints and proofs of any size."""

    def __init__(self, entries: Sequence[bytes], signer: notes.Signer = SIGNER) -> None:
        self.entries, self.signer = list(entries), signer
        self.hashes = [merkle.leaf_hash(entry) for entry in self.entries]

    def checkpoint(self, size: int | None = None) -> bytes:
        size = len(self.entries) if size is None else size
        text = notes.Checkpoint(self.signer.name, size, merkle.root_of(self.hashes[:size])).text
        return notes.sealed(text, [self.signer.sign(text)])

    def tiles(self, size: int | None = None) -> dict[tiles.Tile, bytes]:
        def unread(tile: tiles.Tile) -> bytes:
            raise AssertionError(f"{tile.path} is not there yet")

        return tiles.grown(unread, 0, self.hashes[:size])

    def proof(self, index: int, size: int | None = None) -> bytes:
        size = len(self.entries) if size is None else size
        kept = self.tiles(size)
        hashes = merkle.inclusion_proof(tiles.hashes(lambda tile: kept[tile], size), index, size)
        return proof.format(index, hashes, self.checkpoint(size))

    def export(self, directory: Path) -> Path:
        """Write all files of the log below a directory."""
        files = {tile.path: content for tile, content in self.tiles().items()}
        for bundle in tiles.bundles_of(len(self.entries)):
            first = bundle.index * tiles.TILE_WIDTH
            files[bundle.path] = tiles.encode_bundle(self.entries[first : first + bundle.width])
        for path, content in {**files, "checkpoint": self.checkpoint()}.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        return directory


def statement(**log: Any) -> Leaf:
    """A certificate's statement as the service writes it, cut down to what is checked; ``log`` adds to its place."""
    place = {"origin": ORIGIN, "ref": ref("a"), **log}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "wages", "digest": {"sha256": digest("m1").removeprefix("sha256:")}}],
        "predicateType": "https://expunge.dev/erasure-certificate/v1",
        "predicate": {"request": "r-1", "log": {name: value for name, value in place.items() if value is not None}},
    }


class Issued:
    """A certificate in a log: the story around it, its envelope, the entry that names it, and its proof."""

    def __init__(self, said: Leaf | None = None, **other: Any) -> None:
        body = json.dumps(statement() if said is None else said, sort_keys=True, separators=(",", ":")).encode()
        self.envelope = json.dumps(dsse.sign(CERTIFICATE_SEED, dsse.IN_TOTO, body), separators=(",", ":")).encode()
        self.digest = f"sha256:{sha256(body).hexdigest()}"
        tell = Teller()
        story = [*opening(tell), *completed(tell, "a")]
        for leaf in story:
            leaf.update({"cert": self.digest} if "cert" in leaf else {})
            leaf.update(other if leaf["type"] == "certificate.issued" else {})
        self.story = story
        self.tree = Tree(encoded(story))
        self.index = next(at for at, leaf in enumerate(story) if leaf["type"] == "certificate.issued")
        self.proof = self.proof_of(self.index)

    def proof_of(self, index: int) -> bytes:
        """The proof file of an entry, which it carries."""
        read = proof.parse(self.tree.proof(index))
        return proof.format(index, read.hashes, read.checkpoint, self.tree.entries[index])


def key_of(seed: bytes) -> bytes:
    return notes.Signer("any", seed).vkey.public
