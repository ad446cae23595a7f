"""Settings of a stock Wagtail site with easy-thumbnails, in memory, for tests."""

from __future__ import annotations

import tempfile

SECRET_KEY = "only for tests"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
MEDIA_ROOT = tempfile.mkdtemp(prefix="setcrop-media-")
MEDIA_URL = "/media/"
STATIC_URL = "/static/"
USE_TZ = True
WAGTAIL_SITE_NAME = "test"
WAGTAILADMIN_BASE_URL = "http://127.0.0.1"
WAGTAILIMAGES_FEATURE_DETECTION_ENABLED = True
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "taggit",
    "wagtail.images",
    "wagtail.search",
    "wagtail.users",
    "wagtail.admin",
    "wagtail",
    "easy_thumbnails",
    "modeling_setcrop.integrations.wagtail.SetCropConfig",
]
THUMBNAIL_PROCESSORS = (
    "modeling_setcrop.integrations.easy_thumbnails.setcrop",
    "easy_thumbnails.processors.colorspace",
    "easy_thumbnails.processors.autocrop",
    "easy_thumbnails.processors.scale_and_crop",
    "easy_thumbnails.processors.filters",
    "easy_thumbnails.processors.background",
)
