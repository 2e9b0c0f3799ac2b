import gzip
import hashlib
import io
import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.core import download
from scripts.core.download import fetch
from scripts.core.errors import DataError, StorageError
from scripts.core.log import log
from tests.core.conftest import Processes, line_of

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OFFLINE = "use --dataset synthblood, which needs no network"


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


Action = Callable[["Handler"], None]


class Server(ThreadingHTTPServer):
    """Answers the first request with the first action, and so on; the last action is for all that follow."""

    daemon_threads = True

    def __init__(self, *actions: Action) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.actions = list(actions)
        self.num_requests = 0
        self.headers_seen: list[dict[str, str]] = []
        self.ended = threading.Event()
        self.together = threading.Barrier(2)
        self.clock_s = 0.0  # moved by the server alone, so that no test depends on the speed of the machine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set.npz?download=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        number = self.server.num_requests
        self.server.num_requests += 1
        self.server.headers_seen.append(dict(self.headers))
        self.server.actions[min(number, len(self.server.actions) - 1)](self)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def good(handler: Handler) -> None:
    handler.answer(200, CONTENT, Content_Type="application/octet-stream")


def without_length(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT)


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:300_000])


def cut_chunked(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.close_connection = True
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"3e8\r\n" + CONTENT[:1000] + b"\r\n3e8\r\n" + CONTENT[1000:1500])


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def hang(handler: Handler) -> None:
    handler.server.ended.wait()


def hang_midway(handler: Handler) -> None:
    cut(handler)
    handler.server.ended.wait()


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    with suppress(ConnectionError):  # the reader leaves
        for byte in CONTENT:
            handler.wfile.write(bytes([byte]))
            handler.server.clock_s += 1


def burst_then_drip(handler: Handler) -> None:
    cut(handler)
    drip(handler)


def compressed(handler: Handler) -> None:
    """Longer than what it stands for, since level 0 only wraps it."""
    handler.answer(200, gzip.compress(CONTENT, 0), Content_Encoding="gzip")


def odd_length(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "9" * 5000)
    handler.end_headers()
    handler.wfile.write(CONTENT)


def status(code: int, **headers: str) -> Action:
    return lambda handler: handler.answer(code, b"no", **headers)


def web_page(handler: Handler) -> None:
    handler.answer(200, b"<!DOCTYPE html><title>Log in</title>", Content_Type="text/html; charset=utf-8")


def other_content(handler: Handler) -> None:
    handler.answer(200, CONTENT[::-1], Content_Type="application/octet-stream")


def redirect(handler: Handler) -> None:
    handler.answer(302, Location="/elsewhere.npz")


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    servers: list[Server] = []

    def start(*actions: Action) -> Server:
        server = Server(*actions)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.ended.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    yield messages
    log.removeHandler(handler)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause, which are noted instead of waited for."""
    noted: list[float] = []
    monkeypatch.setattr(download, "sleep", noted.append)
    return noted


def fetch_quickly(url: str, path: Path, *, digest: str = MD5, algorithm: str = "md5") -> None:
    fetch(url, path, digest=digest, algorithm=algorithm, what="TestMNIST", offline=OFFLINE)


def test_a_good_file_arrives_whole_under_its_name_alone(serve, tmp_path):
    server = serve(good)
    path = tmp_path / "not" / "yet" / "there" / "set.npz"
    fetch_quickly(server.url, path)

    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["set.npz"]
    assert server.headers_seen[0]["Accept-Encoding"] == "identity"


def test_a_file_without_announced_length_arrives_too(serve, tmp_path):
    fetch_quickly(serve(without_length).url, tmp_path / "set.npz")
    assert (tmp_path / "set.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("action", [compressed, odd_length])
def test_an_announced_length_that_means_something_else_does_no_harm(serve, tmp_path, action):
    fetch_quickly(serve(action).url, tmp_path / "set.npz")
    assert (tmp_path / "set.npz").read_bytes() == CONTENT


def test_a_valid_file_is_never_downloaded_again(serve, tmp_path, logged):
    server = serve(good)
    (tmp_path / "set.npz").write_bytes(CONTENT)
    fetch_quickly(server.url, tmp_path / "set.npz")

    assert server.num_requests == 0
    assert logged == []


@pytest.mark.parametrize("digest", [SHA256, SHA256[:8], SHA256[:8].upper()])
def test_a_digest_may_be_given_by_its_beginning(serve, tmp_path, digest):
    fetch_quickly(serve(good).url, tmp_path / "weights.pth", digest=digest, algorithm="sha256")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_digest_too_short_to_prove_anything_is_a_programmers_mistake(tmp_path):
    with pytest.raises(ValueError, match="at least 8 digits, got ''"):
        fetch_quickly("http://127.0.0.1:9/", tmp_path / "set.npz", digest="")


def test_an_invalid_file_is_replaced_with_a_warning(serve, tmp_path, logged):
    path = tmp_path / "set.npz"
    path.write_bytes(b"half a file")
    fetch_quickly(serve(good).url, path)

    assert path.read_bytes() == CONTENT
    assert logged == [
        f"{path} is not TestMNIST: its MD5 is {hashlib.md5(b'half a file').hexdigest()}, expected {MD5}. "
        "It is kept until its verified replacement is complete."
    ]


@pytest.mark.parametrize("action", [other_content, cut, cut_chunked, web_page, status(404)])
def test_an_invalid_file_stays_until_its_verified_replacement_is_complete(serve, tmp_path, action):
    path = tmp_path / "set.npz"
    path.write_bytes(b"half a file")
    with pytest.raises(DataError):
        fetch_quickly(serve(action).url, path)

    assert path.read_bytes() == b"half a file"
    assert names_in(tmp_path) == ["set.npz"]


def test_wrong_content_is_refused_and_described(serve, tmp_path):
    server = serve(other_content)
    with pytest.raises(DataError) as caught:
        fetch_quickly(server.url, tmp_path / "set.npz")

    assert str(caught.value) == (
        f"Cannot download TestMNIST from {server.url}: received 1,024,000 bytes with MD5 "
        f"{hashlib.md5(CONTENT[::-1]).hexdigest()} and content type application/octet-stream. "
        f"Put the file with MD5 {MD5} at {tmp_path / 'set.npz'} yourself, or {OFFLINE}."
    )
    assert server.num_requests == 1
    assert names_in(tmp_path) == []


def test_a_web_page_in_place_of_the_file_is_recognised(serve, tmp_path):
    with pytest.raises(DataError, match=r"36 bytes with .* content type text/html; charset=utf-8; it is a web page"):
        fetch_quickly(serve(web_page).url, tmp_path / "set.npz")


def test_an_empty_answer_is_refused(serve, tmp_path):
    with pytest.raises(DataError, match=r"received 0 bytes with .* content type not given"):
        fetch_quickly(serve(lambda handler: handler.answer(200)).url, tmp_path / "set.npz")


def test_the_message_says_that_only_the_beginning_of_a_digest_is_known(serve, tmp_path):
    with pytest.raises(DataError, match=f"SHA-256 {SHA256} .* Put the file with SHA-256 beginning with 00000000 at"):
        fetch_quickly(serve(good).url, tmp_path / "set.npz", digest="00000000", algorithm="sha256")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (cut, "the connection was cut after 300,000 of 1,024,000 bytes"),
        (cut_chunked, "the connection was cut after 1,500 bytes"),
        (hang_up, "the server closed the connection"),
        (status(500), "the server answered 500"),
        (status(503), "the server answered 503"),
        (status(408), "the server answered 408"),
    ],
)
def test_a_temporary_failure_is_retried_after_growing_pauses(serve, tmp_path, pauses, logged, action, reason):
    server = serve(action, action, good)
    fetch_quickly(server.url, tmp_path / "set.npz")

    assert (tmp_path / "set.npz").read_bytes() == CONTENT
    assert pauses == [2.0, 4.0]
    assert [message.split("; attempt ")[1] for message in logged] == ["2 of 4 in 2 s.", "3 of 4 in 4 s."]
    assert all(message.startswith(f"Downloading set.npz: {reason}") for message in logged), logged


def test_a_connection_cut_every_time_ends_with_every_alternative(serve, tmp_path, pauses):
    server = serve(cut)
    with pytest.raises(DataError) as caught:
        fetch_quickly(server.url, tmp_path / "set.npz")

    assert str(caught.value) == (
        f"Cannot download TestMNIST from {server.url}: "
        "the connection was cut after 300,000 of 1,024,000 bytes (attempt 4 of 4). "
        f"Put the file with MD5 {MD5} at {tmp_path / 'set.npz'} yourself, or {OFFLINE}."
    )
    assert server.num_requests == 4
    assert pauses == [2.0, 4.0, 8.0]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [401, 403, 404, 410, 204])
def test_a_permanent_failure_is_not_retried(serve, tmp_path, code):
    server = serve(status(code))
    with pytest.raises(DataError, match=f"the server answered {code} "):
        fetch_quickly(server.url, tmp_path / "set.npz")

    assert server.num_requests == 1
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("99999", 120.0),
        ("9" * 400, 120.0),
        ("soon", 2.0),
        ("-5", 2.0),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 2.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 2199 23:59:59 GMT", 120.0),
        ("Fri, 31 Dec 2199 23:59:59 -0000", 120.0),
    ],
)
def test_the_pause_is_what_retry_after_says_up_to_two_minutes(serve, tmp_path, pauses, retry_after, pause):
    fetch_quickly(serve(status(429, Retry_After=retry_after), good).url, tmp_path / "set.npz")

    assert (tmp_path / "set.npz").read_bytes() == CONTENT
    assert pauses == [pause]


def test_retry_after_may_be_a_date(serve, tmp_path, pauses):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=110), usegmt=True)
    fetch_quickly(serve(status(429, Retry_After=date), good).url, tmp_path / "set.npz")

    assert len(pauses) == 1
    assert 2 < pauses[0] <= 110


@pytest.mark.parametrize("action", [hang, hang_midway])
def test_a_silent_server_is_left_after_the_timeout(serve, tmp_path, logged, monkeypatch, action):
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.2)
    # the second answer has all the time that it needs
    monkeypatch.setattr(download, "sleep", lambda _: monkeypatch.setattr(download, "READ_TIMEOUT_S", 60.0))
    fetch_quickly(serve(action, good).url, tmp_path / "set.npz")

    assert (tmp_path / "set.npz").read_bytes() == CONTENT
    assert logged == ["Downloading set.npz: no answer within 0.2 s; attempt 2 of 4 in 2 s."]


@pytest.mark.parametrize("action", [drip, burst_then_drip])
def test_a_server_that_sends_a_byte_per_second_is_left(serve, tmp_path, logged, monkeypatch, action):
    server = serve(action, good)
    monkeypatch.setattr(download, "monotonic", lambda: server.clock_s)
    fetch_quickly(server.url, tmp_path / "set.npz")

    assert (tmp_path / "set.npz").read_bytes() == CONTENT
    assert len(logged) == 1
    assert re.search(r"only [\d,]+ bytes came in \d+ s; attempt 2 of 4", logged[0])


def test_redirects_are_followed(serve, tmp_path):
    server = serve(redirect, good)
    fetch_quickly(server.url, tmp_path / "set.npz")

    assert (tmp_path / "set.npz").read_bytes() == CONTENT
    assert server.num_requests == 2


def test_redirects_in_a_circle_end(serve, tmp_path):
    with pytest.raises(DataError, match=r"the address cannot be used \(Exceeded 30 redirects.\)"):
        fetch_quickly(serve(redirect).url, tmp_path / "set.npz")


def test_without_a_network_the_message_names_every_alternative(serve, tmp_path, monkeypatch):
    serve(good)  # for its environment
    with socket.socket() as taken:  # bound but not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set.npz"
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError) as caught:
            fetch_quickly(url, Path("dataset/set.npz"))

    assert str(caught.value) == (
        f"Cannot download TestMNIST from {url}: the connection failed (Connection refused) (attempt 4 of 4). "
        f"Put the file with MD5 {MD5} at {tmp_path}/dataset/set.npz yourself, or {OFFLINE}."
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("url", ["no address", "ftp://127.0.0.1/set.npz", "http://"])
def test_an_invalid_address_is_not_retried(tmp_path, pauses, url):
    with pytest.raises(DataError, match="the address cannot be used"):
        fetch_quickly(url, tmp_path / "set.npz")
    assert pauses == []


def test_two_downloads_of_one_file_at_once_do_not_disturb_each_other(serve, tmp_path):
    def in_step(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:500_000])
        handler.server.together.wait(60)  # both are in the middle of the file
        handler.wfile.write(CONTENT[500_000:])

    server, path = serve(in_step), tmp_path / "set.npz"
    failures: list[BaseException] = []

    def one_download() -> None:
        try:
            fetch_quickly(server.url, path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one_download) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert server.num_requests == 2
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["set.npz"]


def test_a_full_disk_is_a_storage_error_and_is_not_retried(serve, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    server = serve(good)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        fetch_quickly(server.url, tmp_path / "set.npz")
    assert str(caught.value).startswith(
        f"Cannot write the file at {tmp_path / 'set.npz'}: it needs 1,024,000 bytes, and "
    )
    assert " are free. The disk is full: free some space, " in str(caught.value)

    assert server.num_requests == 1
    assert names_in(tmp_path) == []


DOWNLOAD = """
import resource, sys
from pathlib import Path
from scripts.core.download import fetch
from scripts.core.errors import StorageError
url, path, digest, most_bytes = sys.argv[1:]
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), int(most_bytes)))
try:
    fetch(url, Path(path), digest=digest, what="TestMNIST")
except StorageError as error:
    print(error, flush=True)
else:
    print("done", flush=True)
"""


def start_download(processes: Processes, server: Server, path: Path, most_bytes: str = "") -> subprocess.Popen[str]:
    return processes.python("-c", DOWNLOAD, server.url, path, MD5, most_bytes, variables={"NO_PROXY": "*"})


def half_then_wait(handler: Handler) -> None:
    cut(handler)
    handler.wfile.flush()
    handler.server.ended.wait()


def parts_in(folder: Path, *, at_least: int) -> list[str]:
    """The unfinished files in a folder, once there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        parts = [name for name in names_in(folder) if name.endswith(".part")]
        if len(parts) >= at_least:
            return parts
        time.sleep(0.02)
    raise AssertionError(f"only {names_in(folder)} after 60 s")


def test_what_a_killed_download_left_is_removed_by_the_next_one(serve, processes, tmp_path):
    server, path = serve(half_then_wait, good), tmp_path / "set.npz"
    first = start_download(processes, server, path)
    assert len(parts_in(tmp_path, at_least=1)) == 1
    first.kill()
    first.wait()
    assert len(names_in(tmp_path)) == 1  # it had no time to tidy up

    fetch_quickly(server.url, path)

    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["set.npz"]


def test_a_download_leaves_that_of_another_process_alone(serve, processes, tmp_path):
    go_on = threading.Event()

    def slow(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:500_000])
        handler.wfile.flush()
        go_on.wait(60)
        handler.wfile.write(CONTENT[500_000:])

    server, path = serve(slow, good), tmp_path / "set.npz"
    slow_one = start_download(processes, server, path)
    (part,) = parts_in(tmp_path, at_least=1)

    fetch_quickly(server.url, path)
    assert names_in(tmp_path) == sorted([part, "set.npz"])
    go_on.set()

    assert line_of(slow_one) == "done"
    assert path.read_bytes() == CONTENT
    assert names_in(tmp_path) == ["set.npz"]


def test_a_disk_that_fills_during_a_download_is_a_storage_error_and_keeps_what_was_there(serve, processes, tmp_path):
    server, path = serve(good), tmp_path / "set.npz"
    path.write_bytes(b"half a file")
    # a size limit stands for a full disk: the kernel refuses the write in the same place
    answer = line_of(start_download(processes, server, path, most_bytes="600000"))
    while not answer.startswith("Cannot"):  # first comes the warning of the invalid file
        assert "is not TestMNIST" in answer
        answer = line_of(processes._started[-1])

    assert answer == (
        f"Cannot write the file at {path}: it needs 1,024,000 bytes. The file would exceed the size limit that is set: "
        "raise it (ulimit -f), or choose another place."
    )
    assert server.num_requests == 1
    assert path.read_bytes() == b"half a file"
    assert names_in(tmp_path) == ["set.npz"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "dataset").write_text("a file in the folder's place")
    with pytest.raises(StorageError, match=r"Cannot make the folder at .*dataset\."):
        fetch_quickly("http://127.0.0.1:9/", tmp_path / "dataset" / "set.npz")


def test_a_folder_that_cannot_be_written_is_found_before_the_network_is_used(serve, unwritable_folder):
    server = serve(good)
    with pytest.raises(StorageError) as caught:
        fetch_quickly(server.url, unwritable_folder / "set.npz")

    assert str(caught.value) == (
        f"Cannot write the file at {unwritable_folder}/set.npz. Permission is denied: change the folder's "
        "permissions, or choose another place."
    )
    assert caught.value.exit_code == 6
    assert server.num_requests == 0


def test_a_folder_in_the_files_place_is_left_alone(tmp_path):
    path = tmp_path / "set.npz"
    path.mkdir()
    with pytest.raises(DataError) as caught:
        fetch_quickly("http://127.0.0.1:9/", path)

    assert str(caught.value) == (
        f"Cannot read TestMNIST at {path}: it is not a regular file. Make the file readable, or move it away to "
        "download it again."
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(serve, tmp_path, monkeypatch, is_terminal):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", screen)
    fetch_quickly(serve(good).url, tmp_path / "set.npz")

    assert ("TestMNIST" in screen.getvalue()) is is_terminal
    assert ("1.02M" in screen.getvalue()) is is_terminal
