"""Merkle trees as in RFC 6962 and RFC 9162: roots, proofs, and their checks.

A tree is read through ``Read``: the hash of the complete subtree of ``2**level`` leaves that is number ``index`` of
its level. Tiles, a table or a list can stand behind it. Complete subtrees never change as the tree grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from expunge_verify.errors import Bad

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256().digest()
LARGEST: Final = (1 << 63) - 1

Read = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """Leaves and nodes are hashed with different first bytes, so that no node passes for an entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash above two hashes."""
    return sha256(b"\x01" + left + right).digest()


def parents(row: bytes) -> bytes:
    """The row above a row of concatenated hashes; a last one without a partner has no parent."""
    pairs = range(0, len(row) - 2 * HASH_BYTES + 1, 2 * HASH_BYTES)
    return b"".join([sha256(b"\x01" + row[at : at + 2 * HASH_BYTES]).digest() for at in pairs])


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root over these leaves.

    >>> a, b, c = (leaf_hash(entry) for entry in (b"a", b"b", b"c"))
    >>> root_of([a, b, c]) == node_hash(node_hash(a, b), c)
    True
    """
    row = b"".join(leaf_hashes)
    if not row:
        return EMPTY_ROOT
    while len(row) > HASH_BYTES:
        alone = row[-HASH_BYTES:] if len(row) // HASH_BYTES % 2 else b""
        row = parents(row) + alone
    return row


def root(read: Read, size: int) -> bytes:
    """The root of a tree of ``size`` leaves."""
    return _span(read, 0, size) if size else EMPTY_ROOT


def inclusion_proof(read: Read, index: int, size: int) -> list[bytes]:
    """The hashes that lead from leaf ``index`` to the root, the leaf's neighbour first (RFC 6962 §2.1.1).

    Raises:
        Bad: The tree has no such leaf.
    """
    if not 0 <= index < size:
        raise Bad(f"there is no entry {index} in a tree of {size}")
    start, end, proof = 0, size, list[bytes]()
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(_span(read, middle, end))
            end = middle
        else:
            proof.append(_span(read, start, middle))
            start = middle
    return proof[::-1]


def consistency_proof(read: Read, old: int, new: int) -> list[bytes]:
    """The hashes that show a tree of ``old`` leaves to be the beginning of one of ``new`` (RFC 6962 §2.1.2).

    Raises:
        Bad: The old tree is the larger one.
    """
    if not 0 <= old <= new:
        raise Bad(f"a tree of {old} cannot be the beginning of a tree of {new}")
    if old in (0, new):
        return []
    start, end, proof = 0, new, list[bytes]()
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(_span(read, middle, end))
            end = middle
        else:
            proof.append(_span(read, start, middle))
            start = middle
    if start:  # else what is left is the old root itself, which the checker has
        proof.append(_span(read, start, end))
    return proof[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the tree of ``size`` with this root has this leaf hash at ``index`` (RFC 9162 §2.1.3.2).

    Raises:
        Bad: It has not, or the proof is not exactly what such a proof consists of.
    """
    if not 0 <= index < size <= LARGEST:
        raise Bad(f"there is no entry {index} in a tree of {size}")
    _need_hashes([leaf, *proof])
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if not last:
            raise Bad(f"an inclusion proof of entry {index} of {size} is shorter than {len(proof)} hashes")
        found, at, last = _climbed(found, at, last, sibling)
    if last or found != root:
        raise Bad(f"the inclusion proof does not lead from entry {index} of {size} to the root")


def check_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the new tree begins with all of the old one (RFC 9162 §2.1.4.2).

    Raises:
        Bad: It does not, or the proof is not exactly what such a proof consists of.
    """
    if not 0 <= old_size <= new_size <= LARGEST:
        raise Bad(f"a tree of {old_size} cannot be the beginning of a tree of {new_size}")
    _need_hashes(proof)
    if old_size in (0, new_size):
        if proof:
            raise Bad(f"a consistency proof from {old_size} to {new_size} is empty; this one has {len(proof)} hashes")
        begins = old_root == new_root if old_size else _begins_empty(old_root, new_size, new_root)
    else:
        begins = _roots(old_size, new_size, old_root, proof) == (old_root, new_root)
    if not begins:
        raise Bad(f"the tree of {new_size} does not begin with the tree of {old_size}")


def _roots(old_size: int, new_size: int, old_root: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The two roots that a proof leads to; 0 < old_size < new_size."""
    # A whole power of two is a node of the new tree; the proof leaves it out, because the checker has it.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not path:
        raise Bad(f"a consistency proof from {old_size} to {new_size} is not empty")
    old = new = path[0]
    for sibling in path[1:]:
        if not last:
            raise Bad(f"a consistency proof from {old_size} to {new_size} is shorter than {len(proof)} hashes")
        if at & 1 or at == last:
            old = node_hash(sibling, old)
        new, at, last = _climbed(new, at, last, sibling)
    if last:
        raise Bad(f"a consistency proof from {old_size} to {new_size} is longer than {len(proof)} hashes")
    return old, new


def _begins_empty(old_root: bytes, new_size: int, new_root: bytes) -> bool:
    """Every tree begins with the empty one; what there is to check is the roots themselves."""
    return old_root == EMPTY_ROOT and (len(new_root) == HASH_BYTES if new_size else new_root == EMPTY_ROOT)


def _climbed(node: bytes, at: int, last: int, sibling: bytes) -> tuple[bytes, int, int]:
    """One sibling further up: the node above, its number in its row, and the number of its row's last."""
    if at & 1:
        return node_hash(sibling, node), at >> 1, last >> 1
    if at < last:
        return node_hash(node, sibling), at >> 1, last >> 1
    # The last of an odd row has no partner there: it moves up until it is the right one of a pair.
    while at and not at & 1:
        at, last = at >> 1, last >> 1
    return node_hash(sibling, node), at >> 1, last >> 1


def _span(read: Read, start: int, end: int) -> bytes:
    """The root over leaves ``start`` to ``end``, where ``start`` is a multiple of a power of two >= their number."""
    parts: list[bytes] = []
    while start < end:
        level = (end - start).bit_length() - 1
        parts.append(read(level, start >> level))
        start += 1 << level
    found = parts.pop()
    while parts:
        found = node_hash(parts.pop(), found)
    return found


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _need_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise Bad(f"a hash has not {HASH_BYTES} bytes")
