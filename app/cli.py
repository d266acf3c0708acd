"""The `expunge` command line; what needs torch or Celery is started as a process of its own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from expunge_verify import cli as verifier
from rich.console import Console
from rich.table import Column, Table
from sqlalchemy.orm import Session

from app import catalog, certificates, doctor, intake, keymaking, planning, queue, supervisor
from app.api.auth import Scope
from app.audit import evidence, restore
from app.audit.mirror import Mirror
from app.audit.sequencer import Sequencer, as_signed
from app.domain.lifecycle import RequestStatus
from app.errors import Conflict, ExpungeError, Invalid, NotFound
from app.settings import Settings, load
from app.storage import audit, keys, migrate, requests, roles, versions
from app.storage.sessions import connect, transaction

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Carry erasure requests through to trained models.")
models = typer.Typer(no_args_is_help=True, help="Register models, look at versions, roll back.")
erasures = typer.Typer(no_args_is_help=True, help="Look at erasure requests, make and cancel them.")
log_commands = typer.Typer(no_args_is_help=True, help="The public log: export it, print its keys.")
api_keys = typer.Typer(no_args_is_help=True, help="Make and revoke API keys.")
cli.add_typer(models, name="models")
cli.add_typer(erasures, name="requests")
cli.add_typer(api_keys, name="keys")
cli.add_typer(log_commands, name="log")
console = Console()
_errors = Console(stderr=True)


def main() -> None:
    """Entry point: our own errors become one sentence and exit code 1."""
    try:
        cli()
    except ExpungeError as error:
        where = f"{error.field}: " if isinstance(error, Invalid) else ""
        _errors.print(f"[red]error[/] {where}{error}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _in_torch(module: str, *arguments: str) -> NoReturn:
    """Run the part of a command that needs torch as a process of its own, and end with its exit code."""
    environment = supervisor.environment(supervisor.join_embedded(load()))
    sys.exit(subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=False).returncode)


@contextmanager
def _tx() -> Iterator[tuple[Session, Settings]]:
    settings = supervisor.join_embedded(load())
    engine = connect(settings.sqlalchemy_url(), pool_size=1)
    try:
        with transaction(engine) as tx:
            keys.check_secrets(tx, settings)
            yield tx, settings
    finally:
        engine.dispose()


def _now() -> datetime:
    return datetime.now(UTC)


@cli.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the API on 127.0.0.1.")] = 8000,
    workers: Annotated[int, typer.Option(help="Unlearning workers.", min=1)] = 1,
) -> None:
    """Run everything on this machine; database and broker too, unless DATABASE_URL and REDIS_URL are set."""
    supervisor.up(load(), port=port, workers=workers)


@cli.command()
def api(host: str = "127.0.0.1", port: int = 8000, workers: int = 1) -> None:
    """Run the HTTP API."""
    _become(*supervisor.api_command(host=host, port=port, workers=workers))


@cli.command()
def dispatch() -> None:
    """Run the dispatcher: outbox to queue, and the public log."""
    _become(*supervisor.DISPATCH)


@cli.command()
def worker(
    queues: Annotated[str, typer.Option(help=f"Queue to serve: {' or '.join(queue.QUEUES)}.")] = queue.UNLEARN,
) -> None:
    """Run a worker for one queue."""
    if queues not in queue.QUEUES:
        raise Invalid("--queues", f"choose one of {', '.join(queue.QUEUES)}")
    _become(*supervisor.worker_command(queues))


@cli.command(name="migrate")
def upgrade(
    *,
    with_roles: Annotated[
        bool, typer.Option("--roles", help="Make the roles expunge_app and expunge_sequencer, too.")
    ] = False,
) -> None:
    """Bring the database to the newest schema."""
    url = supervisor.join_embedded(load()).sqlalchemy_url()
    migrate.upgrade(url)
    console.print("the schema is up to date")
    if with_roles:
        roles.grant(url)
        console.print(f"accounts in role {roles.APP} may serve and work, in role {roles.SEQUENCER} dispatch")


@cli.command()
def demo() -> None:
    """Forget real people end to end and check every claim (needs a clone of the repository)."""
    sys.exit(subprocess.run([sys.executable, "-m", "examples.demo"], check=False).returncode)


@cli.command(name="doctor")
def examine() -> None:
    """Check database, broker, workers and model store, and say what to do."""
    findings = doctor.examine(supervisor.join_embedded(load()))
    for finding in findings:
        mark = "[green]ok [/]" if finding.fine else "[red]bad[/]"
        console.print(f"{mark}  {finding.part}: {finding.sentence}", highlight=False, soft_wrap=True)
    if not all(finding.fine for finding in findings):
        sys.exit(1)


@models.command()
def register(
    name: str,
    recipe: Annotated[str, typer.Option(help="package.module:recipe")],
    weights: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="safetensors file")],
    manifest: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="CSV or Parquet: sample_id, user_id[, split]")
    ],
    *,
    unlearn: Annotated[
        bool, typer.Option("--unlearn", help="Accept people who were erased, and unlearn them.")
    ] = False,
) -> None:
    """Register a trained model, or a new version of it."""
    files = ["--weights", str(weights), "--manifest", str(manifest)]
    _in_torch("workers.register", name, "--recipe", recipe, *files, *(["--unlearn"] if unlearn else []))


@models.command()
def calibrate(
    name: str,
    folds: Annotated[int, typer.Option(help="Parts that the people are dealt into.", min=2)] = 5,
    repeats: Annotated[int, typer.Option(help="Times that they are dealt anew; even numbers are best.", min=1)] = 4,
) -> None:
    """Train folds x repeats models on parts of the people, to aim and measure unlearning by; goes on after a crash."""
    _in_torch("workers.calibrate", name, "--folds", str(folds), "--repeats", str(repeats))


@models.command(name="list")
def list_models() -> None:
    """List models and their live versions."""
    with _tx() as (tx, _):
        table = Table("model", "live version", "origin", "weights", "published")
        for model in versions.models(tx):
            if model.current_version_id:
                live = versions.version(tx, model.current_version_id)
                table.add_row(
                    model.name, str(live.number), live.origin, live.weights[:16], f"{live.published_at:%F %T}"
                )
    console.print(table)


@models.command()
def show(name: str) -> None:
    """Show a model's versions, newest first."""
    with _tx() as (tx, _):
        found = versions.versions(tx, versions.model(tx, name).id)
        numbers = {version.id: version.number for version in found}
        table = Table("version", "from", "origin", "assurance", "weights", "published", "retired")
        for v in found:
            level = (v.report or {}).get("verdict", {}).get("level", "")
            parent = str(numbers[v.parent_id]) if v.parent_id else ""
            retired = f"{v.retired_at:%F %T}" if v.retired_at else "live"
            table.add_row(str(v.number), parent, v.origin, level, v.weights[:16], f"{v.published_at:%F %T}", retired)
    console.print(table)


@models.command()
def page(
    name: str,
    number: Annotated[int, typer.Option(help="Number of the version.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")],
) -> None:
    """Write the verdict on a version as a page for people: words, tables, plots."""
    _in_torch("workers.verdict_page", name, "--number", str(number), "--output", str(output))


@models.command()
def rollback(name: str, to: Annotated[int, typer.Option(help="Number of the version to go back to.")]) -> None:
    """Make an earlier version live again; deletions that this undoes are queued again."""
    with _tx() as (tx, settings):
        version, queued = catalog.roll_back(tx, name, to=to, now=_now(), settings=settings)
    console.print(
        f"{name} version {version.number} has the weights of version {to}; {queued} requests are queued again"
    )


@erasures.command(name="list")
def list_requests(status: RequestStatus | None = None, limit: int = 50) -> None:
    """List requests in order of arrival."""
    with _tx() as (tx, _):
        table = Table(Column("id", no_wrap=True, min_width=36), "status", "reference", "received", "due")
        for r in requests.page(tx, after=0, limit=limit, status=status):
            table.add_row(str(r.id), r.status, r.reference or "", f"{r.received_at:%F}", f"{r.deadline:%F}")
    console.print(table)


@erasures.command(name="show")
def show_request(request_id: UUID) -> None:
    """Show what happened to a request."""
    with _tx() as (tx, _):
        request = requests.get(tx, request_id)
        table = Table(
            "when",
            "what",
            "detail",
            title=f"{request.id}: {request.status}, due {request.deadline:%F}  {request.reason or ''}",
        )
        for event in requests.events(tx, request_id):
            table.add_row(f"{event.at:%F %T.%f}"[:-3], event.type, json.dumps(event.detail) if event.detail else "")
    console.print(table)


@erasures.command()
def create(model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None) -> None:
    """Make a request by hand; the user id is asked for (or read from stdin), so that it is in no shell history."""
    user_id = typer.prompt("user id", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    with _tx() as (tx, settings):
        client = keymaking.operator(tx)
        accepted = intake.accept(
            tx,
            intake.Demand(user_id=user_id, models=model),
            client_id=client,
            idempotency_key=None,
            now=_now(),
            settings=settings,
        )
    console.print(
        f"{accepted.request.id} {accepted.request.status}, due {accepted.request.deadline:%F}", highlight=False
    )


@erasures.command()
def cancel(request_id: UUID) -> None:
    """Take a request back before the work begins."""
    with _tx() as (tx, settings):
        intake.cancel(tx, request_id, now=_now(), settings=settings)
    console.print("cancelled")


@erasures.command()
def retry(request_id: UUID) -> None:
    """Give a request that needs attention to a new job."""
    with _tx() as (tx, settings):
        planning.retry(tx, request_id, now=_now(), settings=settings)
    console.print("queued")


@erasures.command()
def certificate(
    request_id: UUID,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML file to write, to read and print.")] = None,
) -> None:
    """Write a request's certificate, and beside it (FILE.tlog-proof) the proof that the log holds it."""
    with _tx() as (tx, settings):
        issued = evidence.certificate_of(tx, request_id)
        proof = evidence.certificate_proof(tx, issued) if output else None
        html = evidence.page_of(tx, issued, settings) if page else None
    text = json.dumps(issued.envelope, indent=1)
    if page and html:
        page.write_text(html, encoding="utf-8")
    if output and proof:
        output.write_text(text + "\n")
        output.with_name(output.name + ".tlog-proof").write_bytes(proof)
    elif not page:
        print(text)


@erasures.command(name="receipt")
def write_receipt(
    request_id: UUID, output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
) -> None:
    """Write the receipt for the person: it opens what the log says of the request, so give it to nobody else."""
    with _tx() as (tx, settings):
        output.write_bytes(evidence.receipt_of(tx, requests.get(tx, request_id), settings))


@api_keys.command()
def public() -> None:
    """Print the public key that certificates are checked by."""
    settings = supervisor.join_embedded(load())
    print(base64.b64encode(certificates.public_key(settings.key("signing_key"))).decode())


@cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def verify(arguments: typer.Context) -> None:
    """Check a log, a certificate, a receipt: the same as the command `expunge-verify`, which can be had apart."""
    sys.exit(verifier.main(arguments.args))


@log_commands.command()
def export(directory: Annotated[Path, typer.Argument(help="Where to write; new or an earlier export.")]) -> None:
    """Write the published log as files that any C2SP tlog-tiles tool reads."""
    with _tx() as (tx, _):
        shown = audit.published(tx)
        if shown is None or shown.published is None:
            raise NotFound("the log has published no checkpoint yet; `expunge dispatch` does")
        mirror = Mirror(directory)
        mirror.prepare(tx, shown)
        mirror.show(shown, bytes(shown.published))
    _errors.print(f"{shown.size} entries in {directory}", highlight=False, soft_wrap=True)


@log_commands.command(name="open")
def open_entry(index: Annotated[int, typer.Argument(help="The entry's place in the log.")]) -> None:
    """Print an entry with the private record and the salt that open its commitment."""
    with _tx() as (tx, settings):
        print(json.dumps(evidence.record_of(tx, index, settings), indent=1))


@log_commands.command(name="keys")
def show_log_keys() -> None:
    """Print the keys that sign the log, newest first; give them to auditors by another way than the log."""
    with _tx() as (tx, _):
        for key in reversed(audit.known_keys(tx)):
            print(key.vkey)


@log_commands.command()
def trust() -> None:
    """Take PostgreSQL's last checkpoint for the last one signed, after the guard was lost; never after a restore."""
    typer.confirm("Was this database never restored from a backup since the log was last served?", abort=True)
    with _tx() as (tx, settings):
        head = audit.head(tx)
        if head is None:
            raise NotFound("the log is empty; there is nothing to trust")
        sequencer = Sequencer.of(settings, as_signed)
        if sequencer.guard.held() is not None:
            raise Conflict("the guard is there; it is not overwritten")
        if sequencer.mirror.size() > head.size:
            raise Conflict("the log's files hold more than PostgreSQL: it was restored; run `expunge restore-replay`")
        sequencer.guard.swap(None, head.note)
    console.print("the guard holds the last checkpoint again")


@cli.command(name="restore-replay")
def restore_replay(
    may_lack: Annotated[int, typer.Option(help="Ended requests that the journal may lack.", min=0)] = 0,
) -> None:
    """After PostgreSQL was restored from a backup: forget again who was forgotten since, before the service starts."""
    with _tx() as (tx, settings):
        sequencer = Sequencer.of(settings, as_signed)
        done = restore.replay(tx, sequencer, now=_now(), may_lack=may_lack)
    console.print(
        f"{done.entries} entries of the log brought back, {done.closed} requests ended again, "
        f"{done.keys} keys deleted again, {done.forgotten} deletions to be made again (dispatch opens the jobs)",
        highlight=False,
    )
    if done.lacking:
        _errors.print(f"[yellow]{done.lacking} requests had ended and are in no journal:[/] have them sent again")
    if done.lost:
        refs = " ".join(done.lost)
        _errors.print(f"[yellow]{len(done.lost)} requests came in after the backup; have them sent again:[/] {refs}")


@api_keys.command(name="create")
def create_key(name: str, scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat for more.")]) -> None:
    """Make a key; it is printed once."""
    with _tx() as (tx, _):
        key, secret = keymaking.create(tx, name=name, scopes=scope)
    _errors.print(f"key {key.id} for {name}; keep it, it is shown only now", highlight=False)
    print(secret)


@api_keys.command(name="list")
def list_keys() -> None:
    """List keys by their first characters."""
    with _tx() as (tx, _):
        table = Table("id", "name", "begins with", "scopes", "last used", "revoked")
        for key in keys.every(tx):
            used = f"{key.last_used_at:%F %T}" if key.last_used_at else ""
            revoked = f"{key.revoked_at:%F %T}" if key.revoked_at else ""
            table.add_row(str(key.id), key.name, key.hint, " ".join(key.scopes), used, revoked)
    console.print(table)


@api_keys.command()
def revoke(key_id: UUID) -> None:
    """End a key at once."""
    with _tx() as (tx, _):
        keys.revoke(tx, key_id)
    console.print("revoked")


def _become(*command: str) -> None:
    """Replace this process, so that signals reach the service itself."""
    settings = supervisor.join_embedded(load())
    settings.sqlalchemy_url()  # one sentence here instead of a traceback there
    signs = command == supervisor.DISPATCH
    environment = supervisor.dispatch_environment(settings) if signs else supervisor.environment(settings)
    os.execve(sys.executable, [sys.executable, *command], environment)  # noqa: S606 - our own argument list


if __name__ == "__main__":
    main()
