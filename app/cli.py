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
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from expunge_verify import cli as verifier
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from sqlalchemy.orm import Session

from app import (
    catalog,
    certificates,
    decisions,
    doctor,
    intake,
    keymaking,
    manifest_filter,
    notices,
    people,
    queue,
    supervisor,
)
from app.api.auth import Scope
from app.audit import evidence, restore
from app.audit.mirror import Mirror
from app.audit.sequencer import Sequencer, as_signed
from app.domain import deadlines, periods
from app.domain.decisions import ExtensionReason, Ground, HoldGround, IdentityLevel, Notice
from app.domain.lifecycle import RequestStatus
from app.domain.people import Role
from app.errors import Conflict, ExpungeError, Invalid, NotFound
from app.settings import Settings, load
from app.storage import audit, keys, migrate, requests, roles, versions
from app.storage import decisions as stored
from app.storage import people as people_rows
from app.storage.sessions import connect, transaction
from app.storage.tables import ApiKey, ErasureRequest

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Carry erasure requests through to trained models.")
models = typer.Typer(no_args_is_help=True, help="Register models, look at versions, roll back.")
erasures = typer.Typer(no_args_is_help=True, help="Look at erasure requests, make and cancel them.")
log_commands = typer.Typer(no_args_is_help=True, help="The public log: export it, print its keys.")
suppressed = typer.Typer(no_args_is_help=True, help="For training pipelines: who must not be trained on.")
api_keys = typer.Typer(no_args_is_help=True, help="Make and revoke API keys.")
dashboard_people = typer.Typer(no_args_is_help=True, help="Who signs in at the dashboard.")
cli.add_typer(models, name="models")
cli.add_typer(erasures, name="requests")
cli.add_typer(api_keys, name="keys")
cli.add_typer(log_commands, name="log")
cli.add_typer(suppressed, name="suppressions")
cli.add_typer(dashboard_people, name="people")
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


def _day(moment: datetime, settings: Settings) -> str:
    """The controller's day: a deadline is the last moment of it, which elsewhere is another day."""
    return deadlines.day(moment, settings.zone).isoformat()


def _moment_on(day: datetime, settings: Settings, *, field: str) -> datetime:
    """The last moment of the controller's day, or now if that is today: by then it had happened."""
    if day.date() > deadlines.day(_now(), settings.zone):
        raise Invalid(field, "this day is still to come")
    return min(deadlines.end_of(day.date(), settings.zone), _now())


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
def list_requests(
    status: Annotated[RequestStatus | None, typer.Option(help="Only those; `pending` waits for people.")] = None,
    limit: Annotated[int, typer.Option(help="So many at most, the oldest.", min=1)] = 50,
) -> None:
    """List requests in order of arrival."""
    with _tx() as (tx, settings):
        received, due = (Column(name, no_wrap=True, min_width=10) for name in ("received", "due"))
        table = Table(Column("id", no_wrap=True, min_width=36), "status", "reference", received, due)
        for r in requests.page(tx, after=0, limit=limit, status=status):
            days = _day(r.received_at, settings), _day(r.deadline, settings)
            table.add_row(str(r.id), r.status, r.reference or "", *days)
    console.print(table)


@erasures.command(name="show")
def show_request(request_id: UUID) -> None:
    """Show where a request stands and what happened to it."""
    with _tx() as (tx, settings):
        for line in _stands(tx, requests.get(tx, request_id), settings):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        table = Table("when (UTC)", "what", "detail")
        for event in requests.events(tx, request_id):
            table.add_row(f"{event.at:%F %T.%f}"[:-3], event.type, json.dumps(event.detail) if event.detail else "")
    console.print(table)


def _stands(tx: Session, request: ErasureRequest, settings: Settings) -> Iterator[str]:
    late = ", overdue" if (request.closed_at or _now()) > request.deadline else ""
    yield f"{request.id} {request.status}, due {_day(request.deadline, settings)}{late}"
    if request.reason:
        yield f"reason: {request.reason}"
    yield f"identity: {request.identity_level} (needed: {settings.identity_needed})"
    yield f"models: {', '.join(request.models) if request.models else 'all'}"
    agreed = stored.known(tx, [request.id])[request.id].agreed(request.approvals_needed)
    yield f"approvals: {agreed} of {request.approvals_needed} needed"


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
    _tell(accepted.request, settings)


@erasures.command()
def cancel(request_id: UUID) -> None:
    """Take a request back before the work begins."""
    with _tx() as (tx, settings):
        decisions.cancel(tx, request_id, by=keymaking.operator(tx), now=_now(), settings=settings)
    console.print("cancelled")


@erasures.command()
def retry(request_id: UUID) -> None:
    """Give a request that needs attention to a new job."""
    with _tx() as (tx, settings):
        by = keymaking.operator(tx)
        _tell(decisions.retry(tx, request_id, by=by, now=_now(), settings=settings), settings)


Remark = Annotated[str | None, typer.Option("--explanation", help="In your words; name nobody.")]


@erasures.command(name="confirm-identity")
def confirm_identity(request_id: UUID, level: Annotated[IdentityLevel, typer.Option(help="How sure it is.")]) -> None:
    """Say that the person is known now; the request goes on."""
    with _tx() as (tx, settings):
        by = keymaking.operator(tx)
        found = decisions.confirm_identity(tx, request_id, level, by=by, seen_by=None, now=_now(), settings=settings)
        _tell(found, settings)


@erasures.command()
def approve(request_ids: list[UUID], explanation: Remark = None) -> None:
    """Agree to requests that are pending; the command line counts as one person."""
    with _tx() as (tx, _):
        act = partial(decisions.approve, tx, by=keymaking.operator(tx), now=_now(), explanation=explanation)
        outcomes = decisions.each(tx, request_ids, act)
    for one in outcomes:
        said = one.request.status if one.request else one.error
        console.print(f"{one.request_id} {said}", highlight=False, soft_wrap=True)
    if any(one.error for one in outcomes):
        sys.exit(1)


@erasures.command()
def hold(
    request_id: UUID,
    ground: Annotated[HoldGround, typer.Option(help="Why.")],
    until: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Day of the next review.")],
    explanation: Remark = None,
) -> None:
    """Let a request wait; its clock runs on."""
    with _tx() as (tx, settings):
        day = until.replace(tzinfo=settings.zone)
        found = decisions.hold(
            tx,
            request_id,
            ground=ground,
            until=day,
            by=keymaking.operator(tx),
            now=_now(),
            settings=settings,
            explanation=explanation,
        )
        _tell(found, settings)


@erasures.command()
def release(request_id: UUID, explanation: Remark = None) -> None:
    """End a hold; the request is planned anew."""
    with _tx() as (tx, settings):
        by = keymaking.operator(tx)
        found = decisions.release(tx, request_id, by=by, now=_now(), settings=settings, explanation=explanation)
        _tell(found, settings)


@erasures.command()
def refuse(
    request_id: UUID,
    ground: Annotated[Ground, typer.Option(help="A word of the law.")],
    model: Annotated[list[str] | None, typer.Option(help="Only these models; repeat for more.")] = None,
    data_class: Annotated[str | None, typer.Option(help="Your name for data that stay, such as invoices.")] = None,
    explanation: Remark = None,
) -> None:
    """Refuse a request, or leave some models or a class of data out of it."""
    refusal = decisions.Refusal(ground=ground, explanation=explanation, models=model, data_class=data_class)
    with _tx() as (tx, settings):
        by = keymaking.operator(tx)
        _tell(decisions.refuse(tx, request_id, refusal, by=by, now=_now(), settings=settings), settings)
    console.print("the person has to be told: `expunge requests notices` says what", highlight=False)


@erasures.command()
def extend(
    request_id: UUID,
    months: Annotated[int, typer.Option(help="One or two further months.", min=1, max=2)],
    reason: Annotated[ExtensionReason, typer.Option(help="The law knows two.")],
    explanation: Remark = None,
    notified: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day the person was told.")] = None,
) -> None:
    """Move a deadline, once, within the first month (Art. 12(3) GDPR)."""
    with _tx() as (tx, settings):
        by = keymaking.operator(tx)
        extension = decisions.Extension(
            further_months=months,
            reason=reason,
            explanation=explanation,
            notified_at=_moment_on(notified, settings, field="--notified") if notified else None,
        )
        found = decisions.extend(tx, request_id, extension, by=by, now=_now(), settings=settings)
        _tell(found, settings)
    if notified is None:
        console.print("not lawful until the person is told: `expunge requests notices`", highlight=False)


@erasures.command(name="notices")
def show_notices(
    request_id: UUID,
    kind: Annotated[Notice | None, typer.Option(help="Print this one as text.")] = None,
    sent: Annotated[Notice | None, typer.Option(help="Write down that this one was sent.")] = None,
    on: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="With --sent: the day; else now.")] = None,
    language: Annotated[str | None, typer.Option(help="en or de.")] = None,
) -> None:
    """List what the person has to be told and whether they were, or print one of the notices."""
    if sent and kind:
        raise Invalid("--sent", "either print a notice (--kind) or write down that one was sent (--sent)")
    if on and not sent:
        raise Invalid("--on", "this is the day on which the notice named by --sent was sent")
    with _tx() as (tx, settings):
        request = requests.locked(tx, request_id)
        if sent:
            by, at = keymaking.operator(tx), _moment_on(on, settings, field="--on") if on else _now()
            notices.note_sent(tx, request, sent, by=by, at=at, now=_now(), settings=settings)
        if kind:
            print(notices.text_of(tx, request, kind, language or settings.language, settings), end="")
            return
        table = Table("notice", "due", "sent", "")
        for one in notices.owed(tx, request, settings):
            due, told = (_day(moment, settings) if moment else "" for moment in (one.due, one.sent_at))
            table.add_row(one.kind, due, told, one.problem or "")
    console.print(table)


def _tell(request: ErasureRequest, settings: Settings) -> None:
    console.print(f"{request.id} {request.status}, due {_day(request.deadline, settings)}", highlight=False)


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
    if done.refused:
        ids = " ".join(map(str, done.refused))
        _errors.print(
            f"[yellow]{len(done.refused)} open requests were refused in part since; refuse them again:[/] {ids}"
        )
    if done.lost:
        refs = " ".join(done.lost)
        _errors.print(f"[yellow]{len(done.lost)} requests came in after the backup; have them sent again:[/] {refs}")


@suppressed.command(name="filter")
def leave_out(
    manifest: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV: sample_id, user_id, …")],
    model: Annotated[str, typer.Option(help="The model that will be trained on it.")],
    api_key: Annotated[
        str, typer.Option(envvar="EXPUNGE_API_KEY", help="By the environment: process lists show command lines.")
    ],
    url: Annotated[str, typer.Option(help="Where the API answers.")] = "http://127.0.0.1:8000",
    column: Annotated[str, typer.Option(help="The column that names people.")] = "user_id",
) -> None:
    """Write a manifest to stdout without the samples of people who must not be trained on; needs no database."""
    with manifest_filter.Pipeline(url, api_key, model=model) as pipeline:
        done = manifest_filter.sift(manifest, sys.stdout, pipeline, column=column)
    _errors.print(f"{done.kept} rows kept, {done.left_out} left out", highlight=False)


@api_keys.command(name="create")
def create_key(
    name: str,
    scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat for more.")],
    client: Annotated[str | None, typer.Option(help="Name or id of a client that shall have one more key.")] = None,
    expires: Annotated[str | None, typer.Option(help="After a time (90d, 12h) or on a date (UTC).")] = None,
) -> None:
    """Make a key, and a client of the same name if none is given; it is printed once."""
    with _tx() as (tx, _):
        if client is None and keys.client_named(tx, name):
            raise Conflict(f"there is a client of this name; add --client {name} for one more key of it")
        key, secret = keymaking.create(
            tx,
            name=name,
            scopes=scope,
            client_id=keymaking.client_of(tx, client).id if client else None,
            expires_at=periods.moment(expires, _now(), field="--expires") if expires else None,
        )
    _hand_over(key, secret)


@api_keys.command()
def rotate(
    key_id: UUID,
    overlap: Annotated[str, typer.Option(help="How long the old key is good beside the new one (7d, 12h).")] = "7d",
    expires: Annotated[str | None, typer.Option(help="When the new key expires; else it lives as long again.")] = None,
) -> None:
    """Make a key in the place of another: same client, same scopes; the old one ends when the overlap ends."""
    with _tx() as (tx, _):
        key, secret = keymaking.rotate(
            tx,
            key_id,
            overlap=periods.period(overlap, field="--overlap"),
            now=_now(),
            expires_at=periods.moment(expires, _now(), field="--expires") if expires else None,
        )
    _hand_over(key, secret)


def _hand_over(key: ApiKey, secret: str) -> None:
    until = f", good until {key.expires_at:%F %T} UTC" if key.expires_at else ""
    _errors.print(f"key {key.id} for {key.name}{until}; keep it, it is shown only now", highlight=False, soft_wrap=True)
    print(secret)


@api_keys.command(name="list")
def list_keys() -> None:
    """List keys by their first characters."""
    with _tx() as (tx, _):
        table = Table(
            Column("id", no_wrap=True, min_width=36), "name", "client", "begins with", "scopes", "last used", "ends"
        )
        for key, client in keys.every(tx):
            used = f"{key.last_used_at:%F %T}" if key.last_used_at else ""
            ends = f"revoked {key.revoked_at:%F %T}" if key.revoked_at else ""
            ends = ends or (f"{key.expires_at:%F %T}" if key.expires_at else "")
            table.add_row(str(key.id), key.name, client.name, key.hint, " ".join(key.scopes), used, ends)
    console.print(table)


@api_keys.command(name="client")
def describe_client(
    name: Annotated[str, typer.Argument(help="Name or id; a client of a new name is made.")],
    oidc_subject: Annotated[str | None, typer.Option(help="The subject of its tokens; '' for none.")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What its tokens may have at most; replaces what they could.")
    ] = None,
    daily_erasures: Annotated[int | None, typer.Option(min=0, help="Requests it may make in a day.")] = None,
) -> None:
    """Register a client, or change what its tokens may do and how much it may ask for."""
    with _tx() as (tx, _):
        client = keymaking.describe_client(
            tx, name, oidc_subject=oidc_subject, token_scopes=scope, daily_erasures=daily_erasures
        )
        tx.flush()
    console.print(f"client {client.id}: {client.name}", highlight=False, soft_wrap=True)


@api_keys.command(name="clients")
def list_clients() -> None:
    """List clients: whose tokens they are, and what those may do at most."""
    with _tx() as (tx, _):
        table = Table(Column("id", no_wrap=True, min_width=36), "name", "subject", "its tokens may", "a day")
        for c in keys.clients(tx):
            cap = "" if c.daily_erasures is None else str(c.daily_erasures)
            table.add_row(str(c.id), c.name, c.oidc_subject or "", " ".join(c.token_scopes), cap)
    console.print(table)


@api_keys.command()
def revoke(key_id: UUID) -> None:
    """End a key at once."""
    with _tx() as (tx, _):
        keys.revoke(tx, key_id)
    console.print("revoked")


@dashboard_people.command(name="add")
def add_person(
    login: Annotated[str, typer.Argument(help="An e-mail address, for instance.")],
    name: Annotated[str, typer.Option(help="As it stands beside what they decide.")] = "",
    role: Annotated[list[Role] | None, typer.Option(help="May be given several times.")] = None,
    by_provider: Annotated[bool, typer.Option("--by-provider", help="They sign in by the identity provider.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Let somebody in, and print the code by which they set their password; it is shown once."""
    with _tx() as (tx, _):
        roles = role or [Role.VIEWER]
        person, code = people.add(
            tx, login=login, name=name or login, roles=roles, now=_now(), by=None, by_provider=by_provider
        )
    console.print(f"{person.login} may sign in as {', '.join(person.roles)}", highlight=False, markup=False)
    if code:
        console.print(f"code: {code}  (for /admin/set-up, good for three days)", highlight=False, soft_wrap=True)


@dashboard_people.command(name="invite-again")
def invite_person_again(login: str) -> None:
    """Print a new code for somebody who lost password or second factor; both are gone."""
    with _tx() as (tx, _):
        code = people.invite_again(tx, people.named(tx, login).id, now=_now(), by=None)
    console.print(f"code: {code}  (for /admin/set-up, good for three days)", highlight=False, soft_wrap=True)


@dashboard_people.command(name="list")
def list_people() -> None:
    """Show who may sign in."""
    table = Table("login", "name", "roles", "signs in by", "state")
    with _tx() as (tx, _):
        for person in people_rows.every(tx):
            by = "provider" if person.by_provider else "password and code" if person.totp else "password"
            state = "disabled" if person.disabled_at else "active" if person.password or by == "provider" else "invited"
            table.add_row(escape(person.login), escape(person.name), ", ".join(person.roles), by, state)
    console.print(table)


@dashboard_people.command(name="disable")
def disable_person(login: str) -> None:
    """Keep somebody out from now on."""
    with _tx() as (tx, _):
        people.disable(tx, people.named(tx, login).id, now=_now(), by=None)
    console.print("disabled; their sessions have ended")


def _become(*command: str) -> None:
    """Replace this process, so that signals reach the service itself."""
    settings = supervisor.join_embedded(load())
    settings.sqlalchemy_url()  # one sentence here instead of a traceback there
    signs = command == supervisor.DISPATCH
    environment = supervisor.dispatch_environment(settings) if signs else supervisor.environment(settings)
    os.execve(sys.executable, [sys.executable, *command], environment)  # noqa: S606 - our own argument list


if __name__ == "__main__":
    main()
