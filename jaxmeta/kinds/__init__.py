"""The kinds of signal that there are. A new one is a file here, its config in this union, and a preset."""

from typing import Any, get_args

from jaxmeta.kinds.ct import CTConfig
from jaxmeta.kinds.images import ImagesConfig
from jaxmeta.kinds.views import ViewsConfig

SignalConfig = ViewsConfig | ImagesConfig | CTConfig

KINDS: dict[str, Any] = {config.kind: config for config in get_args(SignalConfig)}
"""By the name that a run's config.json has."""
