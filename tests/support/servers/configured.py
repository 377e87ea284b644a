"""Makes configurations that name the scripted server."""

from pathlib import Path
from typing import Any

import yaml

from proxy.config import Config, load_config
from tests.support.replay import Replay


def one_upstream(up: Replay, folder: Path, kind: str, **settings: Any) -> Config:
    """The file of one upstream, `only`, that is student and teacher.

    Without a revise token, whose tokens would be counted by a request at the start.
    """
    upstream = {"kind": kind, "base_url": up.client.base_url, "model": "smollm2", **settings}
    models = {"pair": {"student": "only", "teacher": "only", "params": {"stitch": "clean"}}}
    path = folder / "motab.yaml"
    path.write_text(
        yaml.safe_dump({"upstreams": {"only": upstream}, "models": models}), encoding="utf-8"
    )
    return load_config(path)
