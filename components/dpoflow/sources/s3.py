"""Objects of an S3-compatible store: what a URI names, and downloads that go on after a kill.

Reads   s3://BUCKET/KEY or s3://BUCKET/PREFIX. Endpoint, region and credentials come from where
        boto3 looks for them (environment, profile, the role of pod or machine), and nowhere else
Gives   `S3Object`, `Store` (lists and downloads), `name_of`
Not     what objects hold (files.py), keeping them (snapshot/)
"""

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.sources.files import SUFFIXES, data_names, suffix_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SCHEME = "s3://"

CHUNK = 1 << 20

PATIENCE_S = 300.0
"""How long a download waits for a store that is away before it gives up; what came is kept."""

_ASKED_WRONG = ("NoSuchBucket", "NoSuchKey", "404")
_CHANGED = ("PreconditionFailed", "412", "InvalidRange", "416")
_BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests")
_MD5 = re.compile(r"[0-9a-f]{32}")

Progress = Callable[[int], None]
"""Hears how many bytes of an object are there."""


@dataclass(frozen=True)
class S3Object:
    """One object as it was when it was listed."""

    bucket: str
    key: str
    name: str
    """Key inside the prefix that the source names."""
    num_bytes: int
    etag: str
    """Without its quotes."""

    @property
    def uri(self) -> str:
        """Its own URI."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def draft(self) -> str:
        """A file name of its own: another version of the object never continues this one's."""
        told = "\0".join((self.uri, self.etag, str(self.num_bytes)))
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """What a URI names."""

    files: list[S3Object]
    """Sorted by name."""
    ignored: list[str]
    """Objects under the prefix that are no data files by their name."""


def name_of(uri: str) -> str:
    """What a source is called that has no name of its own: the key's last part, or the bucket."""
    bucket, key = _parts(uri)
    return PurePosixPath(key).name or bucket


class Store:
    """A connection to the store that the environment names."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        import boto3  # 0.3 s, and only who has data there needs it
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, PartialCredentialsError

        plain: dict[str, Any] = {
            "connect_timeout": 10,
            "read_timeout": 30,
            "retries": {"mode": "standard", "total_max_attempts": 4},
        }
        try:
            # A session of our own: boto3's shared one remembers credentials that were.
            session = boto3.session.Session()
            client = session.client("s3", config=Config(**plain))
            host = urlsplit(client.meta.endpoint_url).hostname or ""
            if not host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
                # Only Amazon answers at BUCKET.HOST without further ado.
                path = {"addressing_style": "path"}
                client = session.client("s3", config=Config(**plain, s3=path))
        except PartialCredentialsError:
            raise ConfigError(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together, and one of them is "
                "missing; set both"
            ) from None
        except ValueError:  # which would repeat the URL, and what stands in it
            raise ConfigError(
                "AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 is no URL; set it to http://HOST:PORT"
            ) from None
        except BotoCoreError as error:
            raise ConfigError(f"boto3 cannot be set up ({type(error).__name__})") from None
        self._client, self._host, self._patience_s = client, host, patience_s

    def objects(self, uri: str) -> Listed:
        """The object of that key, or the data files below that prefix."""
        bucket, key = _parts(uri)
        with self._explained(uri):
            if key and not key.endswith("/") and (one := self._one(bucket, key)) is not None:
                return Listed([_checked(one)], [])
            found = list(self._below(bucket, f"{key.rstrip('/')}/" if key else ""))
        names = data_names(each.name for each in found)
        data = [each for each in found if each.name in names]
        ignored = [each.name for each in found if each.name not in names]
        if not data:
            what = (
                f"holds none of its {len(ignored)} objects in"
                if ignored
                else "names nothing; we read"
            )
            raise ConfigError(
                f"data.sources[].uri {uri} {what} {', '.join(SUFFIXES)} (asked {self._host}); name "
                "an object, or a prefix that has data"
            )
        return Listed(sorted(map(_checked, data), key=lambda each: each.name), sorted(ignored))

    def _one(self, bucket: str, key: str) -> S3Object | None:
        from botocore.exceptions import ClientError

        try:
            head = self._client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _code(error) in _ASKED_WRONG:
                return None
            raise
        name = PurePosixPath(key).name
        return S3Object(bucket, key, name, head["ContentLength"], head["ETag"].strip('"'))

    def _below(self, bucket: str, prefix: str) -> Iterator[S3Object]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for each in page.get("Contents", ()):
                if each["Key"].endswith("/"):  # how consoles make a folder
                    continue
                name, etag = each["Key"].removeprefix(prefix), each["ETag"].strip('"')
                yield S3Object(bucket, each["Key"], name, each["Size"], etag)

    def download(self, wanted: S3Object, target: Path, progress: Progress) -> str | None:
        """Bring `target` to the whole of `wanted`; what is there already is not fetched again.

        Gives the version's id where the store keeps versions. Raises DataRejected where the object
        is no longer the one that was listed, or not what its checksum says; ServiceUnavailable
        where the store stayed away.
        """
        heard = time.monotonic()
        have = target.stat().st_size if target.exists() else 0
        same: dict[str, str] = {
            "Bucket": wanted.bucket,
            "Key": wanted.key,
            "IfMatch": f'"{wanted.etag}"',
        }
        found: dict[str, Any] | None = None
        while found is None:
            try:
                with self._explained(wanted.uri, busy_is=_Away):
                    while have < wanted.num_bytes:
                        reply = self._client.get_object(**same, Range=f"bytes={have}-")
                        with target.open("ab") as out:
                            for chunk in reply["Body"].iter_chunks(CHUNK):
                                have += out.write(chunk)
                                heard = time.monotonic()
                                progress(have)
                    found = self._client.head_object(**same)
            except _Away as away:
                have = target.stat().st_size if target.exists() else 0
                if time.monotonic() - heard > self._patience_s:
                    raise ServiceUnavailable(
                        f"{away}; {have:,} of {wanted.num_bytes:,} bytes are kept: give the same "
                        "command again when the store is back"
                    ) from None
                time.sleep(1)
        # Encrypted with a key of its own, an object's ETag is no MD5 and looks like one.
        of_bytes = "aws:kms" not in found.get("ServerSideEncryption", "")
        if have != wanted.num_bytes or (of_bytes and not _is_its_md5(target, wanted.etag)):
            target.unlink()
            raise DataRejected(
                f"{wanted.uri} came with other bytes than its ETag {wanted.etag} says; run again, "
                "and upload it anew if that does not help"
            )
        version = found.get("VersionId")
        return None if version == "null" else version

    @contextlib.contextmanager
    def _explained(self, uri: str, busy_is: type[Exception] = ServiceUnavailable) -> Iterator[None]:
        """What boto3 raises, in our words. No message holds a key or a signature."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            CredentialRetrievalError,
            NoCredentialsError,
            SSOError,
            TokenRetrievalError,
        )
        from urllib3.exceptions import HTTPError

        try:
            yield
        except NoCredentialsError:
            raise ConfigError(
                f"{uri}: no credentials are where boto3 looks for them; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from None
        except (
            CredentialRetrievalError,
            SSOError,
            TokenRetrievalError,
        ) as error:
            raise ConfigError(
                f"{uri}: boto3 could not get credentials ({type(error).__name__}); log in again, "
                "or mend the profile"
            ) from None
        except ClientError as error:
            raise self._of_reply(error, uri, busy_is) from None
        except (BotoCoreError, HTTPError) as error:
            raise busy_is(
                f"the store at {self._host} does not answer ({type(error).__name__})"
            ) from None

    def _of_reply(self, error: "ClientError", uri: str, busy_is: type[Exception]) -> Exception:
        code = _code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return ConfigError(
                f"{uri}: {self._host} has no such bucket; mend data.sources[].uri, or set "
                "AWS_ENDPOINT_URL to the store that has it"
            )
        if code in _CHANGED or code in _ASKED_WRONG:
            return DataRejected(
                f"{uri} changed or went away while it was being read; run again when nobody "
                "writes to it"
            )
        if code in _BUSY or status >= 500 or status == 429:
            return busy_is(f"the store at {self._host} is busy or broken ({code})")
        return ConfigError(
            f"{uri}: {self._host} refuses ({code}); check the credentials, and their right to list "
            "and to read"
        )


class _Away(Exception):
    """The store did not answer this time."""


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise ConfigError(
            "data.sources[].uri is not s3://BUCKET/KEY; credentials stand in the environment, "
            "never in it"
        )
    return bucket, key


def _checked(each: S3Object) -> S3Object:
    if not each.name.isprintable():
        raise DataRejected(f"{each.name!a} has a name that cannot be printed; rename the object")
    if suffix_of(each.name) is None:
        raise DataRejected(
            f"{each.uri} has no suffix that we can read; we read {', '.join(SUFFIXES)}"
        )
    if not each.num_bytes:
        raise DataRejected(f"{each.uri} is empty (0 bytes); remove it or upload it again")
    return each


def _code(error: "ClientError") -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _is_its_md5(path: Path, etag: str) -> bool:
    """Whether the bytes fit an ETag that is an MD5; other ETags say nothing of the bytes."""
    if not _MD5.fullmatch(etag):
        return True
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest() == etag


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)
