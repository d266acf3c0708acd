"""Files of tensors that tell whether they are whole: written beside and renamed, with a digest of what they hold.

safetensors notices a file that was cut, not one in which a bit turned over. Predictions and curvature decide what is
learned next, so each file carries a SHA-256 of its tensors and its metadata, and a reader believes nothing without it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DamagedFile

_DIGEST = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write beside the path, then rename: a crash leaves the old file or the new one, at worst a `.tmp` beside it."""
    draft = path.with_name(path.name + ".tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, draft, metadata={**about, _DIGEST: digest_of(plain, about)})
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, in memory of our own since a mapped file would outlive its deletion, and the metadata.

    Raises:
        DamagedFile: no safetensors file, one without our digest, or one that holds something else than it says.
    """
    try:
        with safe_open(path, framework="pt") as held:
            tensors = {name: held.get_tensor(name).clone() for name in held.keys()}  # noqa: SIM118 - no dict
            about = dict(held.metadata() or {})
    except SafetensorError as broken:
        raise DamagedFile(path, f"is not a safetensors file: {broken}") from broken
    told = about.pop(_DIGEST, None)
    if told is None:
        raise DamagedFile(path, "carries no digest of its tensors: it is none of these files")
    if told != digest_of(tensors, about):
        raise DamagedFile(path, "was altered or cut: its digest is another")
    return tensors, about


def digest_of(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, dtypes, shapes, bytes and metadata, in an order of its own."""
    sha256 = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()
