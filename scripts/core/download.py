"""Fetch a file from the network: the right bytes under its name, or what was there before."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scripts.core.errors import DataError, storage_errors
from scripts.core.files import file_digest, replace_atomically
from scripts.core.log import log

if TYPE_CHECKING:
    import requests

CHUNK_BYTES = 1 << 18
MIN_DIGEST_LENGTH = 8  # hexadecimal digits: what torchvision puts into the names of its weights
MIN_BYTES_PER_S = 1024
HTTP_OK, HTTP_REQUEST_TIMEOUT, HTTP_TOO_MANY_REQUESTS, HTTP_SERVER_ERROR = 200, 408, 429, 500
DIGEST_NAMES = {"md5": "MD5", "sha256": "SHA-256"}


class _TransferError(Exception):
    """Why one attempt failed, as the part of a sentence that follows a colon.

    Not an ``OSError``: inside ``replace_atomically`` those are failures of the disk.
    """


class _PassingError(_TransferError):
    """A failure that the next attempt may not meet; ``retry_after_s`` is when the server wants to be asked again."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The file to be had."""

    url: str
    path: Path
    digest: str  # hexadecimal, whole or its beginning
    algorithm: str
    what: str
    offline: str

    def __post_init__(self) -> None:
        if len(self.digest) < MIN_DIGEST_LENGTH:
            raise ValueError(f"Expected a digest of at least {MIN_DIGEST_LENGTH} digits, got {self.digest!r}.")

    @property
    def digest_name(self) -> str:
        return DIGEST_NAMES.get(self.algorithm, self.algorithm)

    @property
    def description(self) -> str:
        """The digest in words, such as ``SHA-256 beginning with f37072fd``."""
        whole = len(self.digest) == 2 * hashlib.new(self.algorithm, usedforsecurity=False).digest_size
        return f"{self.digest_name} {'' if whole else 'beginning with '}{self.digest}"

    def fits(self, found: str) -> bool:
        return found.startswith(self.digest.lower())

    def fail(self, reason: str, present: str | None) -> NoReturn:
        ways_out = f"Put the file with {self.description} at {self.path.absolute()} yourself"
        raise DataError(
            f"Cannot download {self.what} from {self.url}: {reason}. {ways_out}"
            f"{f', or {self.offline}' if self.offline else ''}."
            f"{f' The file that is there now was left alone: its {self.digest_name} is {present}.' if present else ''}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """How patient to be; times in seconds."""

    attempts: int
    first_pause_s: float
    longest_pause_s: float
    connect_timeout_s: float
    read_timeout_s: float
    pace_window_s: float
    sleep: Callable[[float], None]


def fetch(
    url: str,
    path: Path,
    *,
    digest: str,
    algorithm: str = "md5",
    what: str,
    offline: str = "",
    attempts: int = 4,
    first_pause_s: float = 2.0,
    longest_pause_s: float = 120.0,
    connect_timeout_s: float = 10.0,
    read_timeout_s: float = 30.0,
    pace_window_s: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make sure that ``path`` holds the file with this digest, downloading it if need be.

    A file that is there and right is not downloaded again. One that is there and wrong keeps its place until its
    verified replacement takes it. Several processes may fetch the same file at once.

    Args:
        url: Where the file is; redirects are followed.
        path: Where it goes; missing folders are made.
        digest: Expected hexadecimal digest, or at least its first 8 digits.
        algorithm: A name that ``hashlib.new`` knows.
        what: The file in words, for messages, such as ``"BloodMNIST"``.
        offline: What works without this file, as the end of "Put the file at …, or"; may be empty.
        attempts: How often a failure that may pass (no connection, a timeout, a cut, 408, 429, 5xx) is met.
        first_pause_s: Seconds before the second attempt; each further pause is twice as long.
        longest_pause_s: Most seconds of a pause, also where the server's Retry-After asks for more.
        connect_timeout_s: Most seconds until a connection stands.
        read_timeout_s: Most seconds without a byte.
        pace_window_s: Seconds over which a server must keep up 1 KiB/s on average.
        sleep: Waits for so many seconds.

    Raises:
        DataError: The file cannot be had, or what came is something else.
        StorageError: It cannot be written.
        ValueError: ``digest`` has fewer than 8 digits.
    """
    limits = _Limits(
        attempts=attempts,
        first_pause_s=first_pause_s,
        longest_pause_s=longest_pause_s,
        connect_timeout_s=connect_timeout_s,
        read_timeout_s=read_timeout_s,
        pace_window_s=pace_window_s,
        sleep=sleep,
    )
    _fetch(_Wanted(url=url, path=path, digest=digest, algorithm=algorithm, what=what, offline=offline), limits)


def _fetch(wanted: _Wanted, limits: _Limits) -> None:
    present = _digest_of_present(wanted)
    if present is not None:
        if wanted.fits(present):
            return
        log.warning(
            f"{wanted.path} is not {wanted.what}: its {wanted.digest_name} is {present}, expected is {wanted.digest}. "
            "It is kept until its verified replacement is there."
        )
    with storage_errors(wanted.path.parent, "make the folder"):
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, limits.attempts + 1):
        try:
            _download(wanted, limits)
        except _PassingError as error:
            if attempt == limits.attempts:
                wanted.fail(f"{error} (attempt {attempt} of {attempt})", present)
            usual_pause_s = limits.first_pause_s * 2 ** (attempt - 1)
            asked_s = usual_pause_s if error.retry_after_s is None else error.retry_after_s
            pause_s = min(asked_s, limits.longest_pause_s)
            log.warning(
                f"Downloading {wanted.what}: {error}; attempt {attempt + 1} of {limits.attempts} in {pause_s:.3g} s."
            )
            limits.sleep(pause_s)
        except _TransferError as error:
            wanted.fail(str(error), present)
        else:
            return


def _digest_of_present(wanted: _Wanted) -> str | None:
    """The digest of what lies at the file's place, ``None`` where nothing does."""
    try:
        if not wanted.path.exists():
            return None
        if not wanted.path.is_file():
            raise DataError(
                f"The place of {wanted.what}, {wanted.path.absolute()}, is taken by something that is no file: "
                "move it away, and start again."
            )
        return file_digest(wanted.path, wanted.algorithm)
    except OSError as error:
        raise DataError(
            f"Cannot read {wanted.what} at {wanted.path.absolute()}: {error.strerror or error}. "
            "Make the file readable, or move it away for a fresh one."
        ) from error


def _download(wanted: _Wanted, limits: _Limits) -> None:
    """One attempt; the file is at its place when this returns, and untouched when it raises.

    Raises:
        _TransferError: The attempt failed.
        StorageError: The file cannot be written.
    """
    digest = hashlib.new(wanted.algorithm, usedforsecurity=False)
    size, beginning = 0, b""
    with (
        _answer(wanted.url, limits) as response,
        replace_atomically(wanted.path, needed_bytes=_expected_size(response)) as stream,
    ):
        expected_size = _expected_size(response)
        with _progress(wanted.what, expected_size) as advance:
            for chunk in _chunks(response, limits):
                stream.write(chunk)
                digest.update(chunk)
                beginning = beginning or chunk[:64]
                size += len(chunk)
                advance(len(chunk))
        if expected_size is not None and size < expected_size:
            raise _PassingError(f"the connection was cut after {size:,} of {expected_size:,} bytes")
        found = digest.hexdigest()
        if not wanted.fits(found):
            content_type = response.headers.get("Content-Type", "not given")
            raise _TransferError(
                f"expected {wanted.description}, but what came has {wanted.digest_name} {found}, {size:,} bytes and "
                f"content type {content_type}; {_likely_cause(content_type, beginning)}"
            )
    log.info(f"Downloaded {wanted.what} to {wanted.path}: {size:,} bytes, {wanted.digest_name} as expected.")


def _likely_cause(content_type: str, beginning: bytes) -> str:
    if "html" in content_type.lower() or beginning.lstrip().startswith(b"<"):
        return "it is a web page, such as a proxy or a login page sends instead of the file"
    return (
        "it was cut short or changed on the way, or the file on the server is another one"
        if beginning
        else "it is empty"
    )


@contextmanager
def _answer(url: str, limits: _Limits) -> Iterator[requests.Response]:
    """The server's answer if it is a good one, its content still to be read."""
    import requests

    # a compressed answer would have another length and, read raw, another digest
    headers = {"Accept-Encoding": "identity"}
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    with requests.Session() as session:
        try:
            response = session.get(
                url, headers=headers, stream=True, timeout=(limits.connect_timeout_s, limits.read_timeout_s)
            )
        except passing as error:
            raise _PassingError(_reason(error, limits, "the server closed the connection")) from error
        except (requests.RequestException, ValueError) as error:
            raise _TransferError(f"the address cannot be used ({error})") from error
        with response:
            _refuse_bad_status(response)
            yield response


def _refuse_bad_status(response: requests.Response) -> None:
    status = response.status_code
    if status == HTTP_OK:
        return
    reason = f"the server answered {status} {response.reason or ''}".rstrip()
    if status in (HTTP_REQUEST_TIMEOUT, HTTP_TOO_MANY_REQUESTS) or status >= HTTP_SERVER_ERROR:
        raise _PassingError(reason, _retry_after_s(response.headers.get("Retry-After", "")))
    raise _TransferError(reason)


def _retry_after_s(text: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; ``None`` where it says neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:  # the header's dates are in GMT
            when = when.replace(tzinfo=timezone.utc)
        return max(0.0, (when - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError, LookupError, OverflowError):
        return None


def _expected_size(response: requests.Response) -> int | None:
    """Bytes that the server announces; ``None`` where it does not, or where they count compressed content."""
    text = response.headers.get("Content-Length", "")
    is_plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    return int(text) if is_plain and text.isdecimal() and len(text) < 20 else None


def _chunks(response: requests.Response, limits: _Limits) -> Iterator[bytes]:
    """The content as it arrives.

    Raises:
        _PassingError: It stops arriving, or arrives too slowly.
    """
    import http.client

    import urllib3

    response.raw.enforce_content_length = False  # _download compares the sizes, and can name both
    # read() waits until all it was asked for is there, in which time a server that drips bytes is not noticed
    read = getattr(response.raw, "read1", response.raw.read)
    num_bytes, window_start, window_bytes = 0, time.monotonic(), 0
    while True:
        try:
            chunk: bytes = read(CHUNK_BYTES, decode_content=True)
        except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            reason = _reason(error, limits, f"the connection was cut after {num_bytes:,} bytes")
            raise _PassingError(reason) from error
        if not chunk:
            return
        yield chunk
        num_bytes += len(chunk)
        window_bytes += len(chunk)
        elapsed_s = time.monotonic() - window_start
        if elapsed_s > limits.pace_window_s:
            if window_bytes < MIN_BYTES_PER_S * elapsed_s:
                raise _PassingError(f"only {window_bytes:,} bytes came in {elapsed_s:.0f} s")
            window_start, window_bytes = time.monotonic(), 0


def _reason(error: Exception, limits: _Limits, otherwise: str) -> str:
    """What went wrong on the network, without the layers of classes it was wrapped in."""
    import requests
    import urllib3

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {limits.connect_timeout_s:g} s"
    if isinstance(error, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)):
        return f"no answer within {limits.read_timeout_s:g} s"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return f"the connection failed ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return otherwise


@contextmanager
def _progress(what: str, total_bytes: int | None) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, nothing elsewhere; yields what to call with the number of bytes that came."""
    from tqdm import tqdm

    shown = sys.stderr.isatty()
    with tqdm(desc=what, total=total_bytes, unit="B", unit_scale=True, disable=not shown, leave=False) as bar:
        yield bar.update
