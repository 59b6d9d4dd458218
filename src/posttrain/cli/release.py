"""``posttrain release``: make, list, show, compare, verify, sign, publish and export releases."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from posttrain.cli._options import home_of, home_option, json_option, print_json, print_table

if TYPE_CHECKING:
    from posttrain.artifacts.home import Home
    from posttrain.artifacts.records import Artifact, Problem
    from posttrain.releases.records import ReleaseManifest

_PAIR = "NAME=VALUE"


@click.group(short_help="Make, compare, verify, sign and publish releases.")
def release() -> None:
    """Releases: everything that decides an answer, each piece by its digest, under one name.

    REF is a release's name (v1.3), a lane (production: what holds it now), its digest or six or more digits of it.
    """


class _Pair(click.ParamType[tuple[str, str]]):
    """``NAME=VALUE``."""

    name = _PAIR

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        return (name, text) if name and equals else self.fail(f"expected {_PAIR}, not {value!r}", param, ctx)


def _pairs(
    flag: str, name: str, metavar: str, text: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        flag, name, multiple=True, type=_Pair(), metavar=metavar, help=f"{text} May be given several times."
    )


def _key_options(command: Any) -> Any:
    command = click.option(
        "--require-signature", is_flag=True, help="Refuse a release that this key did not sign."
    )(command)
    return click.option(
        "--public-key",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        metavar="PEM",
        help="A signature by this key must verify where there is one.",
    )(command)


_actor_option = click.option(
    "--actor", metavar="WHO", help="Who does it, for the journal.  [default: the user's name]"
)


@release.command(short_help="Make a release from a spec file or options.")
@click.argument("spec", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", metavar="NAME", help="Name of the release (v1.3), never used twice.")
@click.option("--model", metavar="REF", help="The base weights: an artifact, such as RUN:final-rl.model.")
@_pairs("--adapter", "adapters", "NAME=REF", "An adapter, applied in this order.")
@_pairs("--sampling", "sampling", "KEY=VALUE", "A sampling setting: temperature=0.2.")
@_pairs("--verifier", "verifiers", "NAME=VERSION", "A verifier's version.")
@_pairs("--tool", "tools", "NAME=VERSION", "A tool's version.")
@_pairs("--config", "configuration", "NAME=FILE", "A file of settings, kept in the release.")
@_pairs("--report", "results", "NAME=REF", "A report, with its figures.")
@click.option(
    "--contract", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The promotion rules."
)
@click.option(
    "--decision", metavar="REF", help="What the gate said: a decision's artifact, or what `gate --out` wrote."
)
@click.option(
    "--slo", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The SLO policy (YAML)."
)
@click.option(
    "--rollback",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The rollback policy (YAML).",
)
@click.option("--drift-profile", metavar="REF", help="An artifact with the traffic's profile.")
@click.option("--parent", metavar="REF", help="The release that this one follows.")
@_actor_option
@json_option
@home_option
def create(spec: Path | None, *, actor: str | None, as_json: bool, home: Path | None, **options: Any) -> None:
    """Make a release from SPEC, a YAML or JSON file (docs/releases.md has its keys), and from options, which win.

    What is left out is looked up: tokenizer and chat template in the model, datasets, reward models and the recipe in
    its lineage and run, the contract and the report in the decision, the commit in the Git repository.
    """
    from posttrain.releases.create import create_release
    from posttrain.releases.lanes import read_release
    from posttrain.releases.spec import parse_spec, read_spec

    written = {} if spec is None else read_spec(spec)
    wanted = parse_spec(_merged(written, options), spec.name if spec else "release")
    opened = home_of(home)
    folder = spec.absolute().parent if spec else Path.cwd()
    made = create_release(opened, wanted, folder=folder, actor=_who(actor))
    manifest = read_release(opened, made)
    if as_json:
        print_json({"name": manifest.name, "release": made.digest, "manifest": manifest.to_json()})
        return
    click.echo(f"{manifest.name}  {made.digest}")
    _print_pieces(manifest)
    _print_external(manifest)


@release.command("list", short_help="List releases, the newest first.")
@json_option
@home_option
def list_all(*, as_json: bool, home: Path | None) -> None:
    """List releases: names, dates, what the gate said, lanes that they hold (held before: in brackets)."""
    import dataclasses

    from posttrain.core.canonical import short
    from posttrain.releases.lanes import list_releases

    found = list_releases(home_of(home))
    if as_json:
        print_json([dataclasses.asdict(line) for line in found])
        return
    if not found:
        click.echo("no releases yet: `posttrain release create` makes one")
        return
    rows = [["NAME", "DIGEST", "CREATED", "GATE", "LANES"]]
    for line in found:
        lanes = " ".join([*line.holds, *(f"({lane})" for lane in line.held)])
        gate = line.problem or line.outcome or "-"
        rows.append([line.name, short(line.digest), line.created_at or "-", gate, lanes or "-"])
    print_table(rows)


@release.command(short_help="Show everything that a release is.")
@click.argument("reference", metavar="REF")
@click.option("--checklist", is_flag=True, help="Print the short form of the production checklist, as JSON.")
@json_option
@home_option
def show(reference: str, *, checklist: bool, as_json: bool, home: Path | None) -> None:
    """Show what REF is: every piece, sampling, policies, results, lanes and signatures. Nothing is hashed again."""
    import yaml

    from posttrain.releases.checklist import to_checklist_json
    from posttrain.releases.signing import key_names, stored_signatures

    opened = home_of(home)
    found, manifest = _manifest_of(reference, opened)
    if checklist:
        print_json(to_checklist_json(manifest))
        return
    history = [entry for entry in opened.registry.releases() if entry.digest == found.digest]
    keys = key_names(stored_signatures(opened, found.digest))
    if as_json:
        lanes = [{"lane": e.lane, "position": e.position, "at": e.published_at} for e in history]
        print_json(
            {"release": found.digest, "manifest": manifest.to_json(), "lanes": lanes, "signed_by": keys}
        )
        return
    click.echo(f"{manifest.name}  {found.digest}")
    _print_pieces(manifest)
    for title in ("sampling", "code", "slo", "rollback", "parent"):
        value = manifest.model_dump(mode="json", exclude_none=True).get(title)
        if value:
            click.echo(yaml.safe_dump({title: value}, sort_keys=False, allow_unicode=True).rstrip())
    for name, result in manifest.results.items():
        figures = "  ".join(f"{key} {value:g}" for key, value in result.headline.items())
        click.echo(f"result  {name}  {figures}")
    if manifest.decision is not None:
        click.echo(f"gate  {manifest.decision.outcome}")
    for entry in history:
        click.echo(f"took {entry.lane} at {entry.published_at}")
    click.echo("signed by  " + (" ".join(key[:16] for key in keys) or "nobody"))
    _print_external(manifest)


@release.command(short_help="Say in what two releases differ.")
@click.argument("first", metavar="REF")
@click.argument("second", metavar="REF")
@json_option
@home_option
@click.pass_context
def diff(context: click.Context, first: str, second: str, *, as_json: bool, home: Path | None) -> None:
    """Say in what two releases differ, field by field, down to a sampling value. Exit code 1 where they do.

    REF may also be a folder that `release export` wrote, with a slash: v1.3/.
    """
    from posttrain.releases.diff import diff_releases, render_diff

    before, after = (_anywhere(reference, home) for reference in (first, second))
    found = diff_releases(before, after)
    if as_json:
        print_json({"same": found.same, **found.model_dump(mode="json")})
    else:
        click.echo(render_diff(found), nl=False)
    context.exit(0 if found.same else 1)


@release.command(short_help="Derive every digest of every piece again.")
@click.argument("reference", metavar="REF")
@_key_options
@click.option("--expect", metavar="DIGEST", help="Fail unless an exported folder holds this very release.")
@json_option
@home_option
def verify(
    reference: str,
    *,
    public_key: Path | None,
    require_signature: bool,
    expect: str | None,
    as_json: bool,
    home: Path | None,
) -> int:
    """Derive every digest of every piece of REF again: a release of the home, or a folder that `release export` wrote
    (with a slash: v1.3/).

    Exit code 1 where a piece is changed, missing, or unsigned where a signature is required.
    """
    import dataclasses

    from posttrain.releases.export import exported_digest, verify_exported
    from posttrain.releases.lanes import release_digest
    from posttrain.releases.verify import external_pieces, verify_release

    keys: dict[str, Any] = {"public_key": public_key, "require_signature": require_signature}
    if (folder := _exported(reference)) is not None:
        digest = exported_digest(folder)
        problems = verify_exported(folder, expected=expect, **keys)
    else:
        opened = home_of(home)
        digest = release_digest(opened, reference)
        problems = verify_release(opened, digest, **keys)
    external = [] if problems else external_pieces(_anywhere(reference, home))
    if as_json:
        found = [dataclasses.asdict(problem) for problem in problems]
        print_json({"release": digest, "problems": found, "external": external})
        return 1 if problems else 0
    for problem in problems:
        click.echo(f"{problem.path}: {problem.what}")
    for line in external:
        click.echo(f"not verified here: {line}")
    click.echo(f"{digest}  {_count(problems)}")
    return 1 if problems else 0


@release.command(short_help="Sign a release with a private key.")
@click.argument("reference", metavar="REF")
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="PEM",
    help="Private key (elliptic curve). POSTTRAIN_KEY_PASSWORD holds its password, if it has one.",
)
@_actor_option
@home_option
def sign(reference: str, *, key: Path, actor: str | None, home: Path | None) -> None:
    """Sign REF with an elliptic-curve key, offline. Every piece is verified first.

    A key: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; its public half: openssl ec -in key.pem
    -pubout -out pub.pem.
    """
    import os

    from posttrain.releases.signing import sign_release

    password = os.environ.get("POSTTRAIN_KEY_PASSWORD") or None
    made = sign_release(home_of(home), reference, key, password=password, actor=_who(actor))
    click.echo(f"signed by the key {made.meta['key'][:16]}: signature {made.digest}")


@release.command(short_help="Give a lane to a release.")
@click.argument("reference", metavar="REF")
@click.option("--lane", required=True, metavar="LANE", help="dev, staging or production.")
@click.option(
    "--expect", metavar="REF", help="Refuse unless this release holds the lane now; `nothing`: none does."
)
@_key_options
@_actor_option
@json_option
@home_option
def publish(
    reference: str, *, lane: str, expect: str | None, as_json: bool, home: Path | None, **options: Any
) -> None:
    """Give LANE to REF, after every piece was verified; an earlier release is published again to go back to it.

    Of two who publish at once the second is refused. The journal says who did what, refusals included.
    """
    import dataclasses

    from posttrain.releases.lanes import publish_release

    options["actor"] = _who(options["actor"])
    done = publish_release(home_of(home), reference, lane, expect=expect, **options)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    before = done.previous or "nothing"
    click.echo(f"{lane} is {done.digest} since {done.published_at}; before: {before}")


@release.command(short_help="Write a release and its pieces into a folder.")
@click.argument("reference", metavar="REF")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A new folder.",
)
@home_option
def export(reference: str, *, output: Path, home: Path | None) -> None:
    """Write REF with all its pieces and signatures into a folder; `release verify FOLDER` needs no home to check it."""
    from posttrain.releases.export import export_release

    click.echo(export_release(home_of(home), reference, output))


def _count(problems: list[Problem]) -> str:
    if not problems:
        return "every piece as it was released"
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def _manifest_of(reference: str, opened: Home) -> tuple[Artifact, ReleaseManifest]:
    from posttrain.releases.lanes import find_release, read_release

    found = find_release(opened, reference)
    return found, read_release(opened, found)


def _anywhere(reference: str, home: Path | None) -> ReleaseManifest:
    """The manifest of an exported folder, or of a release of the home."""
    from posttrain.releases.export import read_exported

    if (folder := _exported(reference)) is not None:
        return read_exported(folder)
    return _manifest_of(reference, home_of(home))[1]


def _exported(reference: str) -> Path | None:
    """The exported folder that is meant; with a slash, so that a folder v1.3 is never taken for the release v1.3."""
    from posttrain.releases.export import is_export

    return Path(reference) if "/" in reference and is_export(Path(reference)) else None


def _merged(written: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The spec file's keys with those of the options over them."""
    import yaml

    from posttrain.releases.spec import read_yaml

    spec = dict(written)
    for name in ("name", "model", "decision", "drift_profile", "parent"):
        if options[name] is not None:
            spec[name] = options[name]
    if options["decision"] is not None and Path(options["decision"]).exists():
        spec["decision"] = {"file": str(Path(options["decision"]).absolute())}
    if options["contract"] is not None:
        spec["contract"] = {"file": str(options["contract"].absolute())}
    for name in ("slo", "rollback"):
        if options[name] is not None:
            spec[name] = read_yaml(options[name])
    if options["adapters"]:
        spec["adapters"] = [{"name": name, "piece": value} for name, value in options["adapters"]]
    given: dict[str, dict[str, Any]] = {
        "sampling": {name: yaml.safe_load(value) for name, value in options["sampling"]},
        "verifiers": dict(options["verifiers"]),
        "tools": dict(options["tools"]),
        "configuration": {n: {"file": str(Path(v).absolute())} for n, v in options["configuration"]},
        "results": dict(options["results"]),
    }
    for name, values in given.items():
        if values:
            spec[name] = {**(spec.get(name) or {}), **values}
    return spec


def _who(actor: str | None) -> str:
    if actor:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return "unknown"


def _print_pieces(manifest: ReleaseManifest) -> None:
    from posttrain.releases.records import ArtifactPiece, FilesPiece, pieces

    rows = []
    for field, piece in pieces(manifest):
        what = piece.kind if isinstance(piece, ArtifactPiece) else "external"
        if isinstance(piece, FilesPiece):
            what = f"{len(piece.files)} files" if len(piece.files) > 1 else "file"
        rows.append([field, what, piece.identity])
    print_table(rows, indent="  ")


def _print_external(manifest: ReleaseManifest) -> None:
    from posttrain.releases.verify import external_pieces

    for line in external_pieces(manifest):
        click.echo(f"not verified here: {line}")
