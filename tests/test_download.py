"""Downloads, from servers of this file's own that break, lie and die in the ways that servers do."""

import hashlib
import http.server
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tinyvit.data import DATASETS, DataError, Reading, download, load_dataset
from tinyvit.data.download import RemoteFile, cache_folder
from tinyvit.data.sources import named

CONTENT = np.random.default_rng(0).bytes(700_000)
FILE = RemoteFile("x.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, in whole or in part; `server` says what goes wrong."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, content = self.server, self.server.content
        span = self.headers.get("Range")
        server.requests.append((self.path, span, self.headers.get("If-Range")))
        if server.status:
            return self.send_error(server.status)
        start, other_version = 0, self.headers.get("If-Range") not in (None, server.etag)
        if span and server.ranges and not other_version:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + server.off}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.tell_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        end = len(content)
        if server.breaks:
            end = min(end, start + server.breaks.pop(0))
        self.wfile.write(content[start:end])
        self.close_connection = True
        return None


@contextmanager
def serving(content=CONTENT, **behaviour):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests, server.status = content, [], None
    server.ranges, server.off, server.etag, server.breaks, server.tell_length = True, 0, '"1"', [], True
    vars(server).update(behaviour)
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT", 2.0)


def fetched(folder, *servers, file=FILE):
    urls = [server if isinstance(server, str) else server.url for server in servers]
    path = download.download(file, folder, urls)
    assert path == folder / file.name
    assert path.read_bytes() == CONTENT
    assert not (folder / f"{file.name}.part").exists()
    return path


def test_a_file_comes_once_and_whole(tmp_path):
    with serving() as server:
        for _ in range(2):
            fetched(tmp_path / "new" / "folder", server)
    assert server.requests == [("/x.bin", None, None)]


def test_what_is_asked_for_is_said_before_the_wait(tmp_path, capsys):
    with serving(breaks=[300_000]) as server:
        fetched(tmp_path, server)
    whole, rest = capsys.readouterr().err.splitlines()
    assert whole == f"tinyvit: fetching {server.url}x.bin (700.0 kB)"
    assert rest == f"tinyvit: fetching {server.url}x.bin (700.0 kB, all but the first 300.0 kB)"
    with serving() as dead:
        pass
    with pytest.raises(DataError):
        download.download(FILE, tmp_path / "other", [dead.url])
    assert capsys.readouterr().err == f"tinyvit: fetching {dead.url}x.bin (700.0 kB)\n"


def test_a_server_that_does_not_say_how_much_there_is(tmp_path):
    with serving(tell_length=False, etag=None) as server:
        fetched(tmp_path, server)


def test_a_broken_connection_is_resumed_where_it_broke(tmp_path):
    with serving(breaks=[300_000, 1, 100_000]) as server:
        fetched(tmp_path, server)
    spans = [None, "bytes=300000-", "bytes=300001-", "bytes=400001-"]
    assert server.requests == [("/x.bin", span, '"1"' if span else None) for span in spans]


def test_a_server_that_keeps_breaking_is_given_up_and_gone_on_with_later(tmp_path):
    with serving(breaks=[100] * download.TRIES) as server:
        with pytest.raises(DataError, match=f"broke after {100 * download.TRIES} of 700,000 bytes.* by hand"):
            download.download(FILE, tmp_path, [server.url])
        assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[: 100 * download.TRIES]
        assert not (tmp_path / "x.bin").exists()
        fetched(tmp_path, server)
        assert server.requests[-1] == ("/x.bin", f"bytes={100 * download.TRIES}-", None)


def test_a_server_without_ranges_starts_again(tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:1000])
    with serving(ranges=False) as server:
        fetched(tmp_path, server)
    assert [span for _, span, _ in server.requests] == ["bytes=1000-"]


def test_another_version_is_not_mixed_with_the_first(tmp_path):
    with serving(content=bytes(len(CONTENT)), breaks=[5000]) as server:
        answer = server.RequestHandlerClass.do_GET

        class Changing(Handler):
            def do_GET(self):
                answer(self)
                self.server.content, self.server.etag = CONTENT, '"2"'

        server.RequestHandlerClass = Changing
        fetched(tmp_path, server)
    assert server.requests == [("/x.bin", None, None), ("/x.bin", "bytes=5000-", '"1"')]


def test_leftovers_of_something_else_are_replaced(tmp_path):
    for leftover in (b"wrong" * 100, bytes(len(CONTENT)), bytes(len(CONTENT) + 1)):
        (tmp_path / "x.bin.part").write_bytes(leftover)
        with serving() as server:
            fetched(tmp_path, server).unlink()


def test_leftovers_that_are_complete_need_no_server(tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    fetched(tmp_path, "http://127.0.0.1:9/")


def test_the_next_mirror_when_the_first_is_dead(tmp_path):
    with serving() as dead:
        pass
    with serving(status=404) as lost, serving() as good:
        fetched(tmp_path, dead.url, lost, good)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"content": bytes(len(CONTENT))}, "another content .SHA-256 .*, not "),
        ({"content": CONTENT[:-1]}, "it has 699,999 bytes, not 700,000"),
        ({"content": CONTENT + b"!"}, "it has 700,001 bytes, not 700,000"),
        ({"content": CONTENT + b"!" * 10**6, "tell_length": False}, "sends more than 700,000 bytes"),
        ({"content": CONTENT[:-1], "tell_length": False}, "no bytes after the first 699,999"),
        ({"status": 404}, "the server says 404 Not Found"),
        ({"status": 503}, "the server says 503"),
    ],
)
def test_what_is_wrong_is_said_and_the_next_mirror_asked(tmp_path, behaviour, message):
    with serving(**behaviour) as wrong, serving() as good:
        with pytest.raises(DataError, match=message) as caught:
            download.download(FILE, tmp_path / "a", [wrong.url])
        assert wrong.url in str(caught.value)
        assert not (tmp_path / "a" / "x.bin").exists()
        fetched(tmp_path / "b", wrong, good)
        fetched(tmp_path / "a", good)  # whatever was left


@pytest.mark.parametrize("behaviour", [{"off": 7}, {"status": 416}, {"content": CONTENT[:400]}])
def test_a_range_that_is_not_what_was_asked_for(tmp_path, behaviour):
    with serving(**behaviour) as wrong, serving() as good:
        (tmp_path / "x.bin.part").write_bytes(CONTENT[:500])
        with pytest.raises(DataError, match=r"answers with another range|no bytes after the first 500"):
            download.download(FILE, tmp_path, [wrong.url])
        fetched(tmp_path, good)


def test_a_server_that_says_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    with serving() as good:
        silent = http.server.HTTPServer(("127.0.0.1", 0), Handler)  # accepts, and never answers
        try:
            with pytest.raises(DataError, match="timed out"):
                download.download(FILE, tmp_path, [f"http://127.0.0.1:{silent.server_port}/"])
        finally:
            silent.server_close()
        fetched(tmp_path, good)


def test_two_processes_at_once_download_once(tmp_path):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tinyvit.data.download import RemoteFile, download

        name, size, digest, folder, url = sys.argv[1:]
        download(RemoteFile(name, int(size), digest), Path(folder), [url])
    """)
    with serving(breaks=[200_000] * 2) as server:
        arguments = [FILE.name, str(FILE.size), FILE.sha256, str(tmp_path), server.url]
        processes = [subprocess.Popen([sys.executable, "-c", program, *arguments]) for _ in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_disk_that_cannot_be_written_is_no_fault_of_the_mirror(tmp_path, monkeypatch):
    (tmp_path / "x.bin.part").mkdir()
    with serving() as server, pytest.raises(OSError, match="Is a directory"):
        download.download(FILE, tmp_path, [server.url])


# Names


@pytest.fixture
def served_mnist(tmp_path, monkeypatch):
    """The table's mnist, but small, and served from here."""
    from test_sources import save_idx

    monkeypatch.setenv("TINYVIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYVIT_OFFLINE", raising=False)
    monkeypatch.setattr(named, "SYSTEM", tmp_path / "system")
    save_idx(tmp_path / "there", classes=10)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    files = tuple(RemoteFile(name, len(x), hashlib.sha256(x).hexdigest()) for name, x in contents.items())

    class Four(Handler):
        def do_GET(self):
            self.server.content = contents[self.path.removeprefix("/")]
            super().do_GET()

    with serving() as server:
        server.RequestHandlerClass = Four
        monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], mirrors=(server.url,), files=files))
        yield server


def test_a_dataset_is_downloaded_by_its_name_alone_and_once(served_mnist, tmp_path):
    for _ in range(2):
        data = load_dataset("mnist", Reading(validation=0.5))
        assert (data.name, len(data.train), len(data.test)) == ("mnist", 10, 4)
    assert sorted(path for path, _, _ in served_mnist.requests) == sorted(
        f"/{file.name}" for file in DATASETS["mnist"].files
    )
    assert (tmp_path / "cache" / "mnist" / "t10k-labels-idx1-ubyte.gz").is_file()
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("./mnist")


def test_all_files_that_are_missing_are_named(served_mnist, tmp_path):
    first, *rest = (file.name for file in DATASETS["mnist"].files)
    served_mnist.status = 503
    for here in ((), rest[:1], rest):
        for name in here:
            (tmp_path / "cache" / "mnist" / name).touch()
        with pytest.raises(DataError) as caught:
            DATASETS["mnist"].get()
        message = str(caught.value)
        assert f"{first} cannot be downloaded" in message
        assert f"put it into {tmp_path}/cache/mnist by hand" in message
        assert [name for name in rest if name in message] == [name for name in rest if name not in here]


def test_nothing_is_downloaded_offline(served_mnist, monkeypatch):
    with pytest.raises(DataError, match="mnist is not here, and tinyvit is offline"):
        load_dataset("mnist", Reading(offline=True))
    monkeypatch.setenv("TINYVIT_OFFLINE", "1")
    with pytest.raises(DataError, match="mnist is not here, and tinyvit is offline"):
        load_dataset("mnist")
    assert not served_mnist.requests


def test_where_the_cache_is(monkeypatch):
    for name in ("TINYVIT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert os.fspath(cache_folder()) == "/home/me/.cache/tinyvit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert os.fspath(cache_folder()) == "/c/tinyvit"
    monkeypatch.setenv("TINYVIT_DATA", "/d")
    assert os.fspath(cache_folder()) == "/d"
