"""Objects of an S3-compatible store.

Reads   s3://BUCKET/KEY or s3://BUCKET/PREFIX. Endpoint, region and credentials come from where
        boto3 looks for them (environment, profile, the role of pod or machine), and nowhere else
Gives   `Store`: lists and reads sources, and puts what is put once; `name_of`
Not     what objects hold (files.py), going on after a kill (downloads.py)
"""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.sources.downloads import CHUNK, Away, Body, Listed, RemoteFile, Seal, checked
from dpoflow.sources.files import SUFFIXES, data_names

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SCHEME = "s3://"
SOURCES = "data.sources[].uri"

CONNECT_S, READ_S = 10.0, 30.0
"""How long a store may take to be reached, and to say the next thing; it is asked four times."""

_ASKED_WRONG = ("NoSuchBucket", "NoSuchKey", "404")
_OCCUPIED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_CHANGED = ("PreconditionFailed", "412", "InvalidRange", "416")
_BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests")
_MD5 = re.compile(r"[0-9a-f]{32}")
_ANOTHERS_MD5 = "A" * 22 + "=="
_CONFLICTS = 5
"""How often to ask again where two writers were in each other's way, and neither is there."""


def name_of(uri: str) -> str:
    """What a source is called that has no name of its own: the key's last part, or the bucket."""
    bucket, key = _parts(uri)
    return PurePosixPath(key).name or bucket


class Store:
    """A connection to the store that the environment names.

    For errors: `knob` is where the URIs stand, `rights` what is asked of the credentials.
    """

    def __init__(self, knob: str = SOURCES, rights: str = "to list and to read") -> None:
        import boto3  # 0.3 s, and only who has data there needs it
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, PartialCredentialsError

        plain: dict[str, Any] = {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
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
        self._client, self._host = client, host
        self._knob, self._rights = knob, rights

    def objects(self, uri: str) -> Listed:
        """The object of that key, or the data files below that prefix."""
        bucket, key = _parts(uri)
        with self._explained(uri):
            if key and not key.endswith("/") and (one := self._one(bucket, key)) is not None:
                return Listed([checked(one)], [])
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
                f"{SOURCES} {uri} {what} {', '.join(SUFFIXES)} (asked {self._host}); name "
                "an object, or a prefix that has data"
            )
        return Listed(sorted(map(checked, data), key=lambda each: each.name), sorted(ignored))

    def _one(self, bucket: str, key: str) -> RemoteFile | None:
        from botocore.exceptions import ClientError

        try:
            head = self._client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _code(error) in _ASKED_WRONG:
                return None
            raise
        name, etag = PurePosixPath(key).name, head["ETag"].strip('"')
        return RemoteFile(f"{SCHEME}{bucket}/{key}", name, head["ContentLength"], etag, self)

    def _below(self, bucket: str, prefix: str) -> Iterator[RemoteFile]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for each in page.get("Contents", ()):
                if each["Key"].endswith("/"):  # how consoles make a folder
                    continue
                uri, name = f"{SCHEME}{bucket}/{each['Key']}", each["Key"].removeprefix(prefix)
                yield RemoteFile(uri, name, each["Size"], each["ETag"].strip('"'), self)

    @contextlib.contextmanager
    def open(self, wanted: RemoteFile, start: int) -> Iterator[Body]:
        """The object from `start` on, as long as it is the one that was listed."""
        with self._explained(wanted.uri, busy_is=Away):
            reply = self._client.get_object(**_same(wanted), Range=f"bytes={start}-")
            with contextlib.closing(reply["Body"]) as body:
                yield Body(start, body.iter_chunks(CHUNK))

    def confirm(self, wanted: RemoteFile) -> Seal:
        """Its version, and the MD5 that its ETag is, if it is one."""
        with self._explained(wanted.uri, busy_is=Away):
            found = self._client.head_object(**_same(wanted))
        # Encrypted with a key of its own, an object's ETag is no MD5 and looks like one.
        of_bytes = "aws:kms" not in found.get("ServerSideEncryption", "")
        version = found.get("VersionId")
        return Seal(
            f"ETag {wanted.version}"
            + (f", version {version}" if version not in (None, "null") else ""),
            {"md5": bytes.fromhex(wanted.version)}
            if of_bytes and _MD5.fullmatch(wanted.version)
            else {},
        )

    def get(self, uri: str) -> bytes | None:
        """The whole object of that key; None where there is none."""
        from botocore.exceptions import ClientError

        bucket, key = _parts(uri, self._knob)
        with self._explained(uri):
            try:
                reply = self._client.get_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            with contextlib.closing(reply["Body"]) as body:
                return bytes(body.read())

    def put_once(self, uri: str, body: bytes) -> bytes | None:
        """Make `body` the object of that key if there is none; else give what stands there."""
        for attempt in range(_CONFLICTS):
            # First, since some stores make the bucket that a put names.
            there = self.get(uri)
            if there is not None or self._put(uri, body, refused=_OCCUPIED):
                break
            time.sleep(0.1 * attempt)
        else:
            raise ServiceUnavailable(
                f"{uri}: others write it at this moment; give the same command again"
            )
        # A store that does not know If-None-Match takes the same again.
        if there in (None, body) and self._put(uri, body, refused=_OCCUPIED):
            raise ConfigError(
                f"{uri}: {self._host} overwrites what is there in spite of If-None-Match: *, so "
                f"nothing stands in it; name a store in {self._knob} that keeps to that"
            )
        return there

    def check_writable(self, uri: str) -> None:
        """ConfigError where an object of that key could not be read or put; none is."""
        self.get(uri)
        # Rights are looked at first. What comes with another's MD5 is not kept.
        self._put(uri, b"", refused=("BadDigest", *_OCCUPIED), ContentMD5=_ANOTHERS_MD5)

    def _put(self, uri: str, body: bytes, *, refused: tuple[str, ...], **more: str) -> bool:
        """Whether the store took `body` where nothing was; `refused`: how it may say no."""
        from botocore.exceptions import ClientError

        bucket, key = _parts(uri, self._knob)
        with self._explained(uri):
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=body, IfNoneMatch="*", **more)
            except ClientError as error:
                if _code(error) in refused:
                    return False
                raise
        return True

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
                f"{uri}: {self._host} has no such bucket; mend {self._knob}, or set "
                "AWS_ENDPOINT_URL to the store that has it"
            )
        if code in _CHANGED or code in _ASKED_WRONG:
            return DataRejected(
                f"{uri} changed or went away while it was being read; run again when nobody "
                "writes to it"
            )
        if code == "NotImplemented":
            return ConfigError(
                f"{uri}: {self._host} does not know what it was asked ({code}); name another store "
                f"in {self._knob}"
            )
        if code in _BUSY or status >= 500 or status == 429:
            return busy_is(f"the store at {self._host} is busy or broken ({code})")
        return ConfigError(
            f"{uri}: {self._host} refuses ({code}); check the credentials, and their right "
            f"{self._rights}"
        )


def _same(wanted: RemoteFile) -> dict[str, str]:
    bucket, key = _parts(wanted.uri)
    return {"Bucket": bucket, "Key": key, "IfMatch": f'"{wanted.version}"'}


def _parts(uri: str, knob: str = SOURCES) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise ConfigError(
            f"{knob} is not s3://BUCKET/KEY; credentials stand in the environment, never in it"
        )
    return bucket, key


def _code(error: "ClientError") -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))
