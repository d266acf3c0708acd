"""The command line of the log: what it writes is what strangers can check, and what it refuses it refuses in words."""

from __future__ import annotations

import base64
import json
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest
from expunge_verify import cli as verifier

from app import certificates
from app.audit import evidence
from app.storage import audit
from app.storage.sessions import transaction
from tests.faults import wait_until
from tests.house import Installation, installation
from tests.pipeline import Bench, in_this_process, register
from tests.services import new_database
from workers import erase

pytestmark = pytest.mark.slow

CONTROLLER = '<script>alert(1)</script> & "Sons" GmbH'


@dataclass(frozen=True)
class Office:
    """An installation at rest: one request has ended, one is open, everything is published."""

    house: Installation
    ended: UUID
    waiting: UUID
    vkey: str

    def run(self, *arguments: str | Path) -> CompletedProcess[str]:
        return self.house.cli(*map(str, arguments))

    def sign(self, *arguments: str, stdin: str = "") -> CompletedProcess[str]:
        """Run a command where the log's key is, as on dispatch's machine."""
        bare = self.house.environment
        self.house.environment = self.house.dispatch_environment
        try:
            return self.house.cli(*arguments, stdin=stdin)
        finally:
            self.house.environment = bare

    def check(self, *arguments: str | Path) -> int:
        """What the verifier says, without the seconds that `expunge verify` takes to start."""
        return verifier.main([*map(str, arguments)])

    @property
    def guard(self) -> Path:
        return self.house.settings.log_path / "guard"


@pytest.fixture(scope="module")
def office(postgres_server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    home = tmp_path_factory.mktemp("office")
    with (
        pytest.MonkeyPatch.context() as patch,
        new_database(postgres_server, template_database) as url,
        installation(home, url, "", model=False, controller=CONTROLLER) as house,
    ):
        patch.setattr(erase, "run_step", in_this_process)
        bench = Bench(house)
        register(bench)
        ended = bench.demand(3)
        with bench.sequencing():
            bench.run_all()
            waiting = bench.demand(4)
            wait_until(bench.is_published, 20, "the log is published")
        with transaction(house.engine) as tx:
            vkey = audit.known_keys(tx)[0].vkey
        yield Office(house, ended, waiting, vkey)


@pytest.fixture(scope="module")
def documents(office: Office, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clerk writes when a request has ended: certificate.json, its proof, page.html, receipt.json."""
    here = tmp_path_factory.mktemp("documents")
    to = ("-o", here / "certificate.json", "--page", here / "page.html")
    done = office.run("requests", "certificate", str(office.ended), *to)
    assert done.returncode == 0, done.stderr
    assert office.run("requests", "receipt", str(office.ended), "-o", here / "receipt.json").returncode == 0
    return here


def test_a_certificate_and_the_proof_beside_it_are_accepted(office: Office, documents: Path) -> None:
    file = documents / "certificate.json"
    key = office.run("keys", "public").stdout.strip()
    assert base64.b64decode(key) == certificates.public_key(office.house.settings.key("signing_key"))
    proof = ["--proof", f"{file}.tlog-proof", "--vkey", office.vkey]
    checked = office.run("verify", "certificate", file, "--key", key, *proof)
    assert checked.returncode == 0, checked.stdout
    printed = office.run("requests", "certificate", str(office.ended))
    assert json.loads(printed.stdout) == json.loads(file.read_text())


def test_the_page_carries_a_code_and_no_script_and_shows_the_controllers_name_as_text(
    office: Office, documents: Path
) -> None:
    text = (documents / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;Sons&#34; GmbH" in text
    (code,) = re.findall(r'<img class="code" src="data:image/svg\+xml;base64,([^"]+)" alt="QR code of ([^"]+)"', text)
    drawn = ET.fromstring(base64.b64decode(code[0]))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert {element.tag.split("}")[1] for element in drawn.iter()} == {"svg", "path"}
    proof = (documents / "certificate.json.tlog-proof").read_text()
    index = re.search(r"^index (\d+)$", proof, re.MULTILINE)
    assert index
    assert code[1] == f"https://{office.house.settings.log_origin}/entry/{index[1]}.tlog-proof"
    assert not re.search(r'(src|href|url)\s*[=(]\s*"?https?:', text), "nothing is loaded from anywhere"


def test_the_page_of_a_certificate_that_is_not_published_yet_promises_no_address(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with transaction(office.house.engine) as tx:
        issued = evidence.certificate_of(tx, office.ended)
        assert 'class="code" src' in evidence.page_of(tx, issued, office.house.settings)
        monkeypatch.setattr(audit, "published", lambda _: None)
        page = evidence.page_of(tx, issued, office.house.settings)
    assert "not published yet" in page
    assert 'class="code" src' not in page


def test_a_receipt_is_accepted_and_a_changed_one_is_not(office: Office, documents: Path, tmp_path: Path) -> None:
    file = documents / "receipt.json"
    assert office.check("receipt", file, "--vkey", office.vkey) == 0
    changed = json.loads(file.read_text())
    changed["entries"][0]["record"]["at"] = "2020-01-01T00:00:00+00:00"
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert office.check("receipt", tmp_path / "changed.json", "--vkey", office.vkey) == 1


def test_an_export_is_a_log_and_can_be_brought_up_to_date(office: Office, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    for _ in range(2):
        assert office.run("log", "export", directory).returncode == 0
        assert office.check("log", directory, "--vkey", office.vkey) == 0
        assert office.check("requests", directory, "--vkey", office.vkey) == 0
    public = office.house.settings.log_path / "public"
    files = {path.relative_to(public) for path in public.rglob("*") if path.is_file()}
    ours = {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    assert ours <= files, "an export made at once has fewer partial tiles"
    assert all((directory / name).read_bytes() == (public / name).read_bytes() for name in ours)


def test_the_exit_code_says_good_bad_or_unchecked(office: Office, tmp_path: Path) -> None:
    directory = tmp_path / "log"
    shutil.copytree(office.house.settings.log_path / "public", directory)
    stranger = office.vkey.split("+")[0] + "+deadbeef+" + office.vkey.split("+")[2]
    assert office.check("log", directory) == 2
    assert office.check("log", directory, "--vkey", stranger) == 2, "that is no key"
    assert office.check("log", tmp_path / "nowhere", "--vkey", office.vkey) == 2
    bundle = max((directory / "tile/entries/000.p").iterdir(), key=lambda path: int(path.name))
    bundle.write_bytes(bundle.read_bytes().replace(b"request.received", b"request.receivee", 1))
    bad = office.run("verify", "log", directory, "--vkey", office.vkey)
    assert bad.returncode == 1
    assert bad.stdout.splitlines()[-1].startswith("bad ")
    bundle.unlink()
    assert office.check("log", directory, "--vkey", office.vkey) == 2


def test_the_log_names_its_keys(office: Office) -> None:
    assert office.run("log", "keys").stdout.splitlines() == [office.vkey]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("requests", "certificate", "WAITING", "-o", "c.json", "--page", "c.html"),
            "its certificate comes with its end",
        ),
        (("requests", "receipt", "00000000-0000-0000-0000-000000000000", "-o", "r.json"), "no erasure request"),
    ],
)
def test_what_is_not_there_is_one_sentence_and_no_file(
    office: Office, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    words = [
        str(tmp_path / word) if "." in word else word.replace("WAITING", str(office.waiting)) for word in arguments
    ]
    done = office.run(*words)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_trust_overwrites_no_guard(office: Office) -> None:
    before = office.guard.read_bytes()
    refused = office.sign("log", "trust", stdin="y\n")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert office.guard.read_bytes() == before


def test_trust_makes_a_lost_guard_again_when_a_person_says_so(office: Office) -> None:
    before = office.guard.read_bytes()
    office.guard.unlink()
    try:
        assert office.sign("log", "trust", stdin="n\n").returncode == 1
        assert not office.guard.exists()
        bare = office.house.cli("log", "trust", stdin="y\n")
        assert bare.returncode == 1
        assert "EXPUNGE_LOG_KEY" in bare.stderr
        assert office.sign("log", "trust", stdin="y\n").returncode == 0
        assert office.guard.read_bytes() == before
    finally:
        office.guard.write_bytes(before)


def test_what_is_private_beside_the_log_is_readable_by_us_alone(office: Office) -> None:
    journal = office.house.settings.log_path / "erasures.jsonl"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
