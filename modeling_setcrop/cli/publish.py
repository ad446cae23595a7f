"""`setcrop publish`: an exported folder, and the demo Space, to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options as shared


def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `setcrop export hub` wrote.")],
    repo_id: Annotated[str, typer.Option(help="Repository on the Hub, NAME or OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repositories private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded; needs no network.")] = False,
    space: Annotated[
        Literal["gradio", "static"] | None,
        typer.Option(help="Also a Space: the demo (NAME-demo), or the page that crops in the browser (NAME-web)."),
    ] = None,
) -> None:
    """Upload model, card, code, results and the demo; a failed upload is repeated by the same command.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    from hub_card.publishing import HUB_FAILURES, plan_upload, upload

    try:
        plans = plan_upload(folder, repo_id, space)
    except (OSError, ValueError) as error:
        raise shared.fail(f"setcrop publish: {error}") from None
    for plan in plans:
        kind = f"{'private ' if private else ''}{plan.repo_type}"
        print(f"{plan.repo_id} ({kind}): {len(plan.files)} files, {plan.size / 1e6:.1f} MB")
        for name, size in plan.files:
            print(f"{size:>12,}  {name}")
    if dry_run:
        print("Nothing was uploaded (--dry-run).")
        return
    for plan in plans:
        try:
            print(f"Uploaded: {upload(plan, private)}")
        except HUB_FAILURES as error:
            reason = " ".join(str(error).split())
            raise shared.fail(f"setcrop publish: {plan.repo_id}: {reason}; the same command tries again") from None
