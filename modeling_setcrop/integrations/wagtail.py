"""SetCrop's focal points in Wagtail.

    INSTALLED_APPS += ["modeling_setcrop.integrations.wagtail.SetCropConfig"]
    WAGTAILIMAGES_FEATURE_DETECTION_ENABLED = True

Images that are uploaded then get SetCrop's focal point, and renditions with `fill-` follow it.
"""

from __future__ import annotations

from django.apps import AppConfig


class SetCropConfig(AppConfig):
    """Registers the Willow plug-in when the site starts."""

    name = "modeling_setcrop.integrations.wagtail"
    label = "setcrop"
    verbose_name = "SetCrop"

    def ready(self) -> None:
        from willow.registry import registry

        from . import willow

        registry.register_plugin(willow)
