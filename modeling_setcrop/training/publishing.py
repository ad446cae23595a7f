"""Uploading a trained model: the repository before training, so that no training is lost to a missing token, and
after it what `setcrop export hub` writes."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

logger = logging.getLogger(__name__)


class HubError(OSError):
    """The Hub cannot be written to; the message is one line."""


def prepare_repository(repository: str, private: bool = False, api: HfApi | None = None) -> str:
    """Check the token and create the repository where it does not exist; return its full name.

    Raises:
        HubError: There is no token, it may not write, or the Hub cannot be reached.
    """
    from hub_card.publishing import HUB_FAILURES

    api = api or HfApi()
    try:
        api.whoami()
        return api.create_repo(repository, private=private, exist_ok=True).repo_id
    except HUB_FAILURES as error:
        raise HubError(f"push_to_hub: {repository}: {_one_line(error)}; nothing was trained") from None


def publish(folder: Path, repository: str, api: HfApi | None = None) -> bool:
    """Upload a training's output with code, card and evaluations; whether that went well.

    A failure is one line of the log, with the command that tries again: the model is on the disk.
    """
    from hub_card.card import write_card
    from hub_card.publishing import HUB_FAILURES, plan_upload, upload

    from ..export.hub_export import export_hub

    try:
        with tempfile.TemporaryDirectory() as work:
            target = Path(work, "export")
            export_hub(folder, target)
            write_card(target, repository)
            (plan,) = plan_upload(target, repository)
            logger.info("uploaded to %s", upload(plan, api=api))
    except HUB_FAILURES as error:
        logger.error(
            "push_to_hub: %s: %s; the model is in %s, to upload it: setcrop export hub EXPORT --model %s && "
            "setcrop publish EXPORT --repo-id %s",
            *(repository, _one_line(error), folder, folder, repository),
        )
        return False
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
