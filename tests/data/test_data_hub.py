"""The hub's answers: bytes that are not those of the pinned revision are not kept, and nothing waits without end."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpbench import plugins
from dpbench.data import cache_tables, digests, hub, registry
from dpbench.errors import DpbenchError

NAME = "sst2/train-00000-of-00001.parquet"


def rows(texts=("a fine film", "a dull film")):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"sentence": list(texts), "label": [1, 0]}), buffer)
    return buffer.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: `etag` and the bytes are set by a test; silent: it does not answer for files."""

    content, etag, silent, trickle = b"", "", False, False

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(head=True)

    def do_GET(self):
        self._answer(head=False)

    def _answer(self, head):
        if self.silent:
            time.sleep(20)
            return
        self.send_response(200)
        revision = plugins.get("dataset", "sst2").extra["hub"]["revision"]
        for key, value in (("Content-Length", len(self.content)), ("ETag", f'"{self.etag}"'), ("X-Repo-Commit", revision)):
            self.send_header(key, str(value))
        self.end_headers()
        if head:
            return
        if not self.trickle:
            self.wfile.write(self.content)
            return
        for byte in self.content:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)


@pytest.fixture
def server(monkeypatch):
    """The hub's place taken by a server of this process."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(digests, "_known", {})
    for name, value in (("content", rows()), ("etag", ""), ("silent", False), ("trickle", False)):
        monkeypatch.setattr(Hub, name, value)
    Hub.etag = hashlib.sha256(Hub.content).hexdigest()
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def spec():
    return dict(plugins.get("dataset", "sst2").extra["hub"])


def left(tmp_path):
    """Files of the hub's cache that hold bytes of the data set."""
    return [
        file for file in (tmp_path / "hub").rglob("*") if file.is_file() and ("blobs" in file.parts or "snapshots" in file.parts)
    ]


def test_right_bytes_are_kept_and_noted(server, spec, tmp_path):
    path = hub.fetch(spec, NAME, "dataset")
    assert path.read_bytes() == server.content
    assert cache_tables.read("hub.json") == {f"dataset/nyu-mll/glue@{spec['revision']}/{NAME}": server.etag}
    server.silent = True
    assert hub.fetch(spec, NAME, "dataset") == path


def test_a_small_file_is_held_to_the_checksum_of_git(server, spec):
    server.content = b"{}"
    server.etag = hashlib.sha1(b"blob 2\0{}").hexdigest()
    assert hub.fetch(spec, "config.json", "dataset").read_bytes() == b"{}"
    server.etag = "0" * 40
    with pytest.raises(DpbenchError, match=r"its git checksum differs from the hub's, 0{40}"):
        hub.fetch(spec, "other.json", "dataset")


@pytest.mark.parametrize(
    ("content", "etag", "known", "message"),
    [
        (b"PAR1 other bytes", "0" * 64, None, "and the hub says 0{64}"),
        (rows(("x", "y")), None, "1" * 64, "and 1{64} is known of this revision"),
        (b"<html>", "no-checksum", None, "it is not a Parquet file"),
        (rows()[:100], "no-checksum", None, "it is not a Parquet file"),
    ],
)
def test_other_bytes_are_refused_not_kept_and_fetched_again(content, etag, known, message, server, spec, tmp_path):
    good = server.content
    server.content, server.etag = content, etag or hashlib.sha256(content).hexdigest()
    if known:
        spec["sha256"] = {NAME: known}
    for _ in range(2):
        with pytest.raises(DpbenchError, match=message) as caught:
            hub.fetch(spec, NAME, "dataset")
        assert caught.value.what.startswith(f"nyu-mll/glue@{spec['revision'][:12]}: {NAME}: ")
        assert "start again" in caught.value.hint
        assert left(tmp_path) == []
    spec.pop("sha256", None)
    server.content, server.etag = good, hashlib.sha256(good).hexdigest()
    assert hub.fetch(spec, NAME, "dataset").read_bytes() == good


def test_another_file_of_the_same_revision_is_refused_later(server, spec, tmp_path):
    """Well-formed, and with a checksum of its own: nothing but what was noted tells it from the first."""
    hub.fetch(spec, NAME, "dataset")
    first = server.etag
    for file in left(tmp_path):
        file.unlink()
    server.content = rows(("other", "rows"))
    server.etag = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(DpbenchError, match=f"it was {first} when this revision was first fetched") as caught:
        hub.fetch(spec, NAME, "dataset")
    assert "hub.json" in caught.value.hint
    assert left(tmp_path) == []


def test_bytes_changed_in_the_cache_are_not_taken(server, spec, tmp_path):
    path = hub.fetch(spec, NAME, "dataset")
    blob = path.resolve()
    blob.chmod(0o644)
    blob.write_bytes(rows(("other", "rows")))
    with pytest.raises(DpbenchError, match="start again"):
        hub.fetch(spec, NAME, "dataset")
    assert hub.fetch(spec, NAME, "dataset").read_bytes() == server.content


def test_a_hub_that_falls_silent_is_given_up(server, spec, monkeypatch):
    server.silent = True
    monkeypatch.setattr(hub, "STALLED_SECONDS", 0.3)
    begun = time.monotonic()
    with pytest.raises(DpbenchError, match="download failed: the hub sent nothing for 0 s") as caught:
        hub.fetch(spec, NAME, "dataset")
    assert time.monotonic() - begun < 10
    assert caught.value.hint == "try again, or use a local folder"


def test_a_hub_that_sends_a_byte_now_and_then_is_given_up(server, spec, monkeypatch):
    server.trickle = True
    monkeypatch.setattr(hub, "STALLED_SECONDS", 0.5)
    with pytest.raises(DpbenchError, match=r"download failed: (only [\d,]+ bytes came in|the hub sent nothing)"):
        hub.fetch(spec, NAME, "dataset")


def test_a_download_of_another_process_is_waited_for(tmp_path, monkeypatch):
    """What grows beside is taken as this download's: the client waits for whoever holds its lock."""
    monkeypatch.setattr(hub, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(hub, "SLOWEST", 1)
    growing = tmp_path / "x.incomplete"
    growing.write_bytes(b"")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)

    def grow():
        for _ in range(8):
            growing.write_bytes(growing.read_bytes() + bytes(10))
            time.sleep(0.2)
        stop.set()

    thread.start()
    threading.Thread(target=grow, daemon=True).start()
    assert hub._watched(thread, lambda: hub._incomplete(tmp_path)) == "no file came"


def test_an_impossible_repository_name_blames_the_plug_in(spec):
    with pytest.raises(DpbenchError, match="hub: ") as caught:
        hub.fetch(spec | {"repo": "no/such/name"}, NAME, "dataset")
    assert "'no/such/name'" in caught.value.hint


def test_a_run_that_meets_other_bytes_names_the_file(server, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: True)
    server.content, server.etag = b"PAR1 other bytes", "0" * 64
    with pytest.raises(DpbenchError, match=r"and the hub says 0{64}"):
        registry.load("sst2", "train", registry.resolve("sst2", "hub"))
