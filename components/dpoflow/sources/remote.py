"""Sources that lie elsewhere: which store has them, and what they name there.

Reads   a source of the spec
Gives   `is_remote`, `name_of`, `shown`, `look`, `listed`
Not     downloading (downloads.py), how stores are asked (s3.py, web.py, tracking/feedback.py)
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.spec import SourceConfig
from dpoflow.sources import s3, web
from dpoflow.sources.downloads import Listed, too_large
from dpoflow.tracking import feedback


def is_remote(uri: str) -> bool:
    """Whether `uri` lies in a store or on a server, not in a file of this machine."""
    return uri.startswith(s3.SCHEME) or web.is_web(uri) or feedback.is_feedback(uri)


def name_of(uri: str) -> str:
    """What a remote source is called that has no name of its own."""
    if feedback.is_feedback(uri):
        return feedback.name_of(uri)
    return web.name_of(uri) if web.is_web(uri) else s3.name_of(uri)


def shown(uri: str) -> str:
    """A remote URI as people may see it."""
    return web.shown(uri) if web.is_web(uri) else uri


def look(source: SourceConfig, *, most: int) -> None:
    """Whether a remote source is there at all; an error says why not."""
    if feedback.is_feedback(source.uri):
        feedback.look(source.uri)  # to list it is to read it
    else:
        listed(source, most=most)


def listed(source: SourceConfig, *, most: int, known: Sequence[Path] = ()) -> Listed:
    """What a remote source names, nothing of it larger than `most` bytes; or feedback.NothingNew.

    `known`: earlier files of a source with `since`; what they hold is left out.
    """
    if feedback.is_feedback(source.uri):
        found = feedback.Store(known).objects(source.uri)
    elif web.is_web(source.uri):
        found = web.Store(query=_query(source)).objects(source.uri)
    else:
        found = s3.Store().objects(source.uri)
    files = [replace(file, most=most) for file in found.files]
    for file in files:
        if file.num_bytes is not None and file.num_bytes > most:
            raise DataRejected(too_large(file))
    return Listed(files, found.ignored, found.told)


def _query(source: SourceConfig) -> str:
    if source.query_env is None:
        return ""
    if not (query := os.environ.get(source.query_env, "").strip()):
        raise ConfigError(
            f"{source.query_env} is not set, and data.sources[].uri {shown(source.uri)} takes its "
            f"query from it; export {source.query_env}=…, or leave query_env out"
        )
    return query
