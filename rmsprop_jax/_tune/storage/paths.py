"""The path of a sweep's folder."""

import os
import re
from pathlib import Path


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that `path` names; ValueError for an address such as "gs://bucket/run".

    `pathlib` would take such an address for a local folder "gs:".
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"path must be a local folder, got {os.fspath(path)!r}. Remote folders are not "
            "supported: pass a local path, and copy the folder when the sweep has ended."
        )
    return Path(path).expanduser()
