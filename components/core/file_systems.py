"""Which file system a URI names, and texts about it without what lets somebody in.

`s3://bucket/folder`, `gs://`, `hdfs://` and `file://` are pyarrow's own; any other scheme is fsspec's. Credentials come
from where the file system looks for them (environment, profile, instance); an S3-compatible store is named by
`?endpoint_override=host:port&scheme=http` or AWS_ENDPOINT_URL. They are never shown or written.

Light on purpose (no torch, no ray): pyarrow is imported when the first URI is opened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from components.core.errors import ConfigError
from components.core.reading import why

if TYPE_CHECKING:
    from pyarrow import fs

URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^?]*)(\?.*)?", re.DOTALL)
ONE_SLASH = re.compile(r"(s3a?|gs|gcs|hdfs|viewfs|abfss?):/(?!/)(.*)", re.DOTALL | re.IGNORECASE)
_SECRET = re.compile(r"(?<=://)[^/\s]*@|(?<=\S)\?\S*")  # user:password@ and a query
_ARROWS = frozenset(("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"))
_WRITTEN = {  # how such a URI is written
    "file": "the path itself, or file:///folder",
    "s3": "s3://bucket/folder, and behind it ?endpoint_override=HOST:PORT&scheme=http for a store of your own",
    "gs": "gs://bucket/folder",
    "hdfs": "hdfs://host:port/folder",
}
_UNWRITTEN = re.compile(r"[^!#$%&'()*+,/:;=?@\[\]\w.~-]", re.ASCII)  # what no URI has as it is, such as a space
_ADDED = {  # unless a URI says it
    "s3": "allow_delayed_open=true",  # pyarrow then puts what is small in one request, and not in three
    "gs": "retry_limit_seconds=30",  # pyarrow's own 15 minutes are longer than a run holds its lock without a word
    "gcs": "retry_limit_seconds=30",
}
# Stores that show an object when all of it has arrived, and not before. Others show a file while it grows.
WHOLE_PUTS = frozenset(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2", "memory"))


def opened(scheme: str, uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it. The libraries' own messages repeat the secrets, so they are left out."""
    import pyarrow as pa
    from pyarrow import fs

    if scheme in _ARROWS:
        uri = _UNWRITTEN.sub(lambda sign: quote(sign[0]), uri)
        added = _ADDED.get(scheme)
        told = [uri]
        if added is not None and added.partition("=")[0] not in uri:
            told.insert(0, f"{uri}{'&' if '?' in uri else '?'}{added}")
        for one in told:
            try:
                return fs.FileSystem.from_uri(one)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ValueError) as error:
                if one != uri and isinstance(error, pa.ArrowInvalid):
                    continue  # by versions that do not know what was added; what else is wrong is told below
                raise ConfigError(
                    f"{without_secrets(uri)} cannot be opened ({reason(error)}); "
                    f"give {_WRITTEN.get(scheme, f'{scheme}://bucket/folder')}."
                ) from None
    import fsspec
    import fsspec.implementations.local

    try:
        found, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"{without_secrets(uri)} cannot be opened ({reason(error)}); "
            f"give file, s3, gs, hdfs or a scheme of fsspec whose package is installed."
        ) from None
    if isinstance(found, fsspec.implementations.local.LocalFileSystem):
        return fs.LocalFileSystem(), str(path)
    return fs.PyFileSystem(fs.FSSpecHandler(found)), str(path)


def without_secrets(text: str) -> str:
    """A URI, or a sentence with URIs in it, without user, password and query."""
    return _SECRET.sub("", text)


def reason(error: Exception) -> str:
    """Why reading failed, as its library says it, on one line and without secrets."""
    said = getattr(error, "strerror", None)
    return without_secrets(said or why(error))
