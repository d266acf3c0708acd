"""The model store: content-addressed safetensors, written once, never pickle.

    <url>/incoming/<random>                             being written; worthless after a crash
    <url>/blobs/sha256/ab/abcdef….safetensors           complete, named by what it holds
    <url>/references/sha256/ab/abcdef….safetensors      the same for predictions about people, which are not kept

A file gets its final name by one move after its last byte is on disk, so a crash leaves no half file under a digest.
Whoever reads compares the digest: a file that was swapped, cut or damaged is an error, not a model.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from app.errors import Invalid
from workers.shelf import BLOBS, Shelf

_CHUNK: Final = 1 << 20
_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"


class Store:
    """Weights by their sha256, under any URL that fsspec knows (``file://`` here, ``s3://`` with the extra).

    Args:
        url: the directory; created with the first file.
        shelf: the part of it; nothing of one is found on another.

    Raises:
        Misconfigured: fsspec does not know the protocol, or lacks its package.
    """

    def __init__(self, url: str, shelf: str = BLOBS) -> None:
        self._shelf = Shelf(url, shelf)
        self._root = self._shelf.root
        self._files: Any = self._shelf.files  # Any: fsspec publishes no types

    def put(self, tensors: Mapping[str, Tensor]) -> str:
        """Store tensors and tell their digest; the same tensors give the same digest, whatever their order or device.

        Entries that share memory (tied weights) are written out one by one: the module ties them again when it loads.
        """
        return self._write(io.BytesIO(save(_separate(tensors))))

    def adopt(self, path: Path) -> str:
        """Store a file as it is and tell its digest; ``check_weights`` says beforehand whether it should be.

        Raises:
            Invalid: The file can't be read.
        """
        with _readable(path), path.open("rb") as file:
            return self._write(file)

    def get(self, digest: str) -> dict[str, Tensor]:
        """Read tensors back, on the CPU.

        Raises:
            Invalid: There is nothing under this digest, or what is there has another one.
        """
        try:
            return load(self._read(digest))
        except SafetensorError as error:
            raise Invalid("weights", f"{digest} is not a safetensors file: {error}") from None

    def exists(self, digest: str) -> bool:
        """Tell whether a complete file has this name; only ``get`` compares its content."""
        return self._shelf.exists(digest)

    def delete(self, digest: str) -> None:
        """Remove a file; one that is gone already is no error, since deletions are repeated after crashes."""
        self._shelf.delete(digest)

    @contextmanager
    def lent(self, digest: str) -> Iterator[Path]:
        """Hand out a checked copy as a local file, for readers that want a path; it is deleted afterwards.

        Raises:
            Invalid: As `get`.
        """
        with tempfile.TemporaryDirectory(prefix="expunge-") as directory:
            path = Path(directory) / f"{digest}.safetensors"
            path.write_bytes(self._read(digest))
            yield path

    def _read(self, digest: str) -> bytes:
        try:
            content: bytes = self._files.cat_file(self._shelf.place(digest))
        except FileNotFoundError:
            raise Invalid("weights", f"the model store has nothing under {digest}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise Invalid("weights", f"the model store's file {digest} was altered or cut: its sha256 is another")
        return content

    def _write(self, source: IO[bytes]) -> str:
        incoming = f"{self._root}/incoming/{uuid4().hex}"
        self._files.makedirs(f"{self._root}/incoming", exist_ok=True)
        try:
            digest = self._copy(source, incoming)
            place = self._shelf.place(digest)
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._files.mv(incoming, place)  # over an equal file, or over one that went bad
        except BaseException:
            if self._files.exists(incoming):
                self._files.rm_file(incoming)
            raise
        self._settle(place)
        return digest

    def _copy(self, source: IO[bytes], incoming: str) -> str:
        sha256 = hashlib.sha256()
        with self._files.open(incoming, "wb") as target:
            while chunk := source.read(_CHUNK):
                sha256.update(chunk)
                target.write(chunk)
            if self._shelf.is_local:
                target.flush()
                os.fsync(target.fileno())
        return sha256.hexdigest()

    def _settle(self, place: str) -> None:
        # The name must be as durable as the row in PostgreSQL that will point to it. Object stores see to that alone.
        if self._shelf.is_local:
            for directory in Path(place).parents[:4]:  # ab, sha256, blobs, the root: each may be new
                _sync(directory)


def check_weights(path: Path) -> None:
    """Refuse a file that should not become a model: pickle in any wrapping, damage, or numbers that are none.

    Raises:
        Invalid: Says what the file is instead, or which tensors hold NaN or infinity.
    """
    with _readable(path):
        if path.stat().st_size == 0:
            raise Invalid("weights", f"{path.name} is empty")
        try:
            with safe_open(path, framework="pt") as file:
                names = sorted(file.keys())
                unfit = [name for name in names if not _all_finite(file.get_tensor(name))]
        except SafetensorError as error:
            raise Invalid("weights", f"{path.name} is {_diagnosis(path)} ({error})") from None
    if not names:
        raise Invalid("weights", f"{path.name} holds no tensors")
    if unfit:
        raise Invalid("weights", f"{path.name} holds NaN or infinity in {', '.join(unfit)}")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sorted by name, on the CPU, contiguous, and no two in the same memory: what the format can express."""
    seen: set[int] = set()
    separate = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return separate


def _all_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    comparable = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
    return bool(torch.isfinite(comparable).all())


def _diagnosis(path: Path) -> str:
    # Asked only after safetensors refused it: a header of 640 bytes makes a sound file start like a pickle.
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start == _ZIP:
        return "a PyTorch archive with pickle inside, which can run code: save it again with safetensors"
    if start.startswith(_PICKLE):
        return "a pickle, which can run code: save it again with safetensors"
    return "not a safetensors file, or a damaged one"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Invalid("weights", f"{path.name} can't be read: {error.strerror or error}") from None
