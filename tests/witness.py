"""A C2SP tlog-witness: cosigns a checkpoint only if it extends the last one it saw of that log, and remembers."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

from expunge_verify import merkle, notes
from expunge_verify.errors import Bad
from expunge_verify.notes import COSIGNATURE, Checkpoint, Note, Vkey, vkey_of


class Witness:
    """``with Witness(name, file, logs) as witness``; what it saw lies in ``file``, so it may be stopped and begun."""

    def __init__(self, name: str, file: Path, logs: list[Vkey], *, seed: bytes = b"w" * 32) -> None:
        self.name, self._file, self._logs, self._seed = name, file, logs, seed
        self.vkey = vkey_of(name, notes.Signer(name, seed).vkey.public, COSIGNATURE)
        self.port = 0
        self.asked: list[int] = []
        """The status of every answer so far."""
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    @property
    def line(self) -> str:
        """Its line in a policy."""
        return f"witness {self.name} {self.vkey} http://127.0.0.1:{self.port}/\n"

    def seen(self, origin: str) -> tuple[int, bytes]:
        """Size and root of the last checkpoint it cosigned of a log."""
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        size, root = known.get(origin, (0, merkle.EMPTY_ROOT.hex()))
        return size, bytes.fromhex(root)

    def judge(self, body: bytes) -> tuple[int, str]:
        """Status and body of the answer to an add-checkpoint."""
        try:
            old, proof, note = _read(body)
            checkpoint = Checkpoint.parse(note.text)
        except (Bad, UnicodeDecodeError):
            return 400, ""
        keys = [key for key in self._logs if key.name == checkpoint.origin]
        if not keys:
            return 404, ""
        if not any(_signed(note, key) for key in keys):
            return 403, ""
        if old > checkpoint.size:
            return 400, ""
        with self._lock:  # two that extend the same checkpoint must not both be cosigned
            size, root = self.seen(checkpoint.origin)
            if old != size or (old == checkpoint.size and root != checkpoint.root):
                return 409, f"{size}\n"
            try:
                merkle.check_consistency(old, root, checkpoint.size, checkpoint.root, proof)
            except Bad:
                return 422, ""
            self._keep(checkpoint)
        return 200, notes.cosign(self._seed, self.name, note.text, int(time.time()))

    def _keep(self, checkpoint: Checkpoint) -> None:
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps({**known, checkpoint.origin: (checkpoint.size, checkpoint.root.hex())}))
        beside.replace(self._file)

    def __enter__(self) -> Self:
        witness = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, said = witness.judge(body) if self.path == "/add-checkpoint" else (404, "")
                witness.asked.append(status)
                self.send_response(status)
                self.send_header("Content-Type", "text/x.tlog.size" if status == 409 else "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(said.encode())))
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server
        self._server.shutdown()
        self._server.server_close()


def _read(body: bytes) -> tuple[int, list[bytes], Note]:
    head, _, note = body.partition(b"\n\n")
    first, *proof = head.decode("ascii").split("\n")
    if not first.startswith("old ") or len(proof) > 63:
        raise Bad("no old line, or too many hashes")
    return notes.decimal(first.removeprefix("old ")), [notes.unbase64(line) for line in proof], notes.parse(note)


def _signed(note: Note, key: Vkey) -> bool:
    try:
        return note.signed_by(key)
    except Bad:
        return False
