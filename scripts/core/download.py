"""Download a file and verify it; a failed download leaves what was at its path before."""

from __future__ import annotations

import hashlib
import http.client
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import NoReturn
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from scripts.core.errors import DataError, storage_errors
from scripts.core.files import file_digest, replace_atomically
from scripts.core.log import log

CHUNK_BYTES = 1 << 18
DIGEST_NAMES = {"md5": "MD5", "sha256": "SHA-256"}
MIN_DIGEST_LENGTH = 8  # hexadecimal digits, as torchvision puts them into the names of its weights
ATTEMPTS = 4
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 120.0  # each pause is twice as long as the one before it
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 30.0
MIN_BYTES_PER_S, PACE_WINDOW_S = 1024, 60.0  # the server must deliver so much on average over so many seconds
RETRIED_STATUSES = frozenset({408, 429, *range(500, 600)})
LAST_ATTEMPT = f"(attempt {ATTEMPTS} of {ATTEMPTS})"


class _TransferError(Exception):
    """The content stopped arriving; not an ``OSError``, which is a failure of the disk in ``replace_atomically``."""


class _LoggedRetry(Retry):
    """Retries as urllib3 counts them; each is logged, and no pause is longer than ``MAX_PAUSE_S``."""

    def sleep(self, response: urllib3.BaseHTTPResponse | None = None) -> None:
        last, pause_s = self.history[-1], None
        if response is not None:
            with suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):  # neither seconds nor a date
                pause_s = self.get_retry_after(response)
        pause_s = min(FIRST_PAUSE_S * 2 ** (len(self.history) - 1) if pause_s is None else pause_s, MAX_PAUSE_S)
        reason = _reason(last.error) if last.error else f"the server answered {last.status}"
        attempt, name = f"attempt {len(self.history) + 1} of {ATTEMPTS}", urlsplit(last.url or "").path
        log.warning("Downloading %s: %s; %s in %.3g s.", name.rpartition("/")[2], reason, attempt, pause_s)
        sleep(pause_s)


@dataclass(frozen=True, slots=True)
class _Download:
    """What to download; the fields are the arguments of ``fetch``."""

    url: str
    path: Path
    digest: str
    algorithm: str
    what: str
    offline: str

    def matches(self, found: str) -> bool:
        return found.startswith(self.digest.lower())

    def fail(self, reason: str) -> NoReturn:
        is_complete = len(self.digest) == 2 * hashlib.new(self.algorithm, usedforsecurity=False).digest_size
        digest = f"{DIGEST_NAMES[self.algorithm]} {'' if is_complete else 'beginning with '}{self.digest}"
        raise DataError(
            f"Cannot download {self.what} from {self.url}: {reason}. Put the file with {digest} at "
            f"{self.path.absolute()} yourself{f', or {self.offline}' if self.offline else ''}."
        )


def fetch(url: str, path: Path, *, digest: str, algorithm: str = "md5", what: str, offline: str = "") -> None:
    """Make sure that ``path`` holds the file with this digest; download it if necessary.

    A valid file is not downloaded again. An invalid one stays until its verified replacement is complete. Temporary
    failures (no connection, a timeout, a cut, 408, 429, 5xx) are retried. Several processes may fetch one file at once.

    Args:
        url: Where the file is; redirects are followed.
        path: Where it goes; missing folders are made.
        digest: Expected hexadecimal digest, or at least its first 8 digits.
        algorithm: ``"md5"`` or ``"sha256"``.
        what: The file in words, for messages, such as ``"BloodMNIST"``.
        offline: What works without this file, as the end of "Put the file at …, or"; may be empty.

    Raises:
        DataError: The file cannot be downloaded, or its content is not the expected one.
        StorageError: It cannot be written; an unwritable folder is found before the network is used.
        ValueError: ``digest`` has fewer than 8 digits.
    """
    if len(digest) < MIN_DIGEST_LENGTH:
        raise ValueError(f"Expected a digest of at least {MIN_DIGEST_LENGTH} digits, got {digest!r}.")
    download = _Download(url, path, digest, algorithm, what, offline)
    present = _present_digest(download)
    if present is not None and download.matches(present):
        return
    with storage_errors(path.parent, "make the folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(path, "write the file"), tempfile.TemporaryFile(dir=path.parent):
        pass
    if present is not None:
        problem = f"its {DIGEST_NAMES[algorithm]} is {present}, expected {digest}"
        log.warning("%s is not %s: %s. It is kept until its verified replacement is complete.", path, what, problem)
    retries: Retry = _LoggedRetry(ATTEMPTS - 1, status_forcelist=RETRIED_STATUSES, raise_on_status=False)
    while True:
        with _open(download, retries) as response:
            try:
                _receive(download, response)
                return
            except _TransferError as error:  # urllib3 retries only what fails before the content arrives
                retries = response.raw.retries or retries  # those that are left
                if not retries.total:
                    download.fail(f"{error} {LAST_ATTEMPT}")
                retries = retries.increment("GET", url, error=error)
        retries.sleep()


def _present_digest(download: _Download) -> str | None:
    """The digest of the file at the path, ``None`` if there is none."""
    try:
        if not download.path.exists():
            return None
        if not download.path.is_file():
            raise OSError("it is not a regular file")
        return file_digest(download.path, download.algorithm)
    except OSError as error:
        raise DataError(
            f"Cannot read {download.what} at {download.path.absolute()}: {error.strerror or error}. "
            "Make the file readable, or move it away to download it again."
        ) from error


def _open(download: _Download, retries: Retry) -> requests.Response:
    """The server's answer with status 200; its content is not yet read."""
    headers = {"Accept-Encoding": "identity"}  # compressed content would have another length and digest
    try:
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, HTTPAdapter(max_retries=retries))
            timeouts = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            response = session.get(download.url, headers=headers, stream=True, timeout=timeouts)
    except (requests.ConnectionError, requests.Timeout) as error:
        download.fail(f"{_reason(error)} {LAST_ATTEMPT}")
    except (requests.RequestException, ValueError) as error:
        download.fail(f"the address cannot be used ({error})")
    if response.status_code != http.HTTPStatus.OK:
        response.close()
        reason = f"the server answered {response.status_code} {response.reason or ''}".rstrip()
        download.fail(f"{reason} {LAST_ATTEMPT}" if response.status_code in RETRIED_STATUSES else reason)
    return response


def _receive(download: _Download, response: requests.Response) -> None:
    """Write the content to the path once its digest is the expected one; the path is untouched if this raises."""
    length = response.headers.get("Content-Length", "")
    is_plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
    expected_size = int(length) if is_plain and length.isdecimal() and len(length) < 20 else None
    digest, size = hashlib.new(download.algorithm, usedforsecurity=False), 0
    with (
        replace_atomically(download.path, needed_bytes=expected_size) as stream,
        tqdm(desc=download.what, total=expected_size, unit="B", unit_scale=True, leave=False, disable=None) as bar,
    ):
        for chunk in _chunks(response):
            stream.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            size += len(chunk)
        if expected_size is not None and size < expected_size:
            raise _TransferError(f"the connection was cut after {size:,} of {expected_size:,} bytes")
        name, found = DIGEST_NAMES[download.algorithm], digest.hexdigest()
        if not download.matches(found):
            content_type = response.headers.get("Content-Type", "not given")
            hint = "; it is a web page, such as a login page" if "html" in content_type.lower() else ""
            download.fail(f"received {size:,} bytes with {name} {found} and content type {content_type}{hint}")
    log.info("Downloaded %s to %s: %s bytes, %s as expected.", download.what, download.path, f"{size:,}", name)


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The content as it arrives; raises ``_TransferError`` if it stops or is too slow."""
    response.raw.enforce_content_length = False  # _receive compares the sizes, and can name both
    # read() waits for all the bytes that were requested, so it would not notice that a server sends very slowly
    read = getattr(response.raw, "read1", response.raw.read)
    num_bytes, window_bytes, window_start = 0, 0, monotonic()
    while True:
        try:
            chunk: bytes = read(CHUNK_BYTES, decode_content=True)
        except (OSError, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise _TransferError(_reason(error, f"the connection was cut after {num_bytes:,} bytes")) from error
        if not chunk:
            return
        yield chunk
        num_bytes += len(chunk)
        window_bytes, elapsed_s = window_bytes + len(chunk), monotonic() - window_start
        if elapsed_s > PACE_WINDOW_S:
            if window_bytes < MIN_BYTES_PER_S * elapsed_s:
                raise _TransferError(f"only {window_bytes:,} bytes came in {elapsed_s:.0f} s")
            window_bytes, window_start = 0, monotonic()


def _reason(error: BaseException, otherwise: str = "the server closed the connection") -> str:
    """What went wrong on the network, without the layers of exceptions that wrap it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _TransferError):
            return str(cause)
        if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
            return f"no answer within {READ_TIMEOUT_S:g} s"
        if type(cause) is urllib3.exceptions.ConnectTimeoutError:  # not NewConnectionError, which derives from it
            return f"no connection within {CONNECT_TIMEOUT_S:g} s"
        if isinstance(cause, OSError) and cause.strerror:
            return f"the connection failed ({cause.strerror})"
        cause = cause.__cause__ or cause.__context__
    return otherwise
