"""Raw files over HTTP: complete or absent, resumed where they stopped; offline the user is told what to do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from recbole_ilrec.errors import UserError
from recbole_ilrec.preparation import KNOWN, amazon18, download, how_to_get, known_dataset, prepare
from recbole_ilrec.preparation import pipeline as pipeline_module
from recbole_ilrec.preparation.download import DownloadError, download_file

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves files from memory and notes the ranges it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/data.bin": CONTENT}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True
        self.break_after: int | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : self.server.break_after])

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        assert download_file(f"{server.base}/data.bin", tmp_path / "sub/data.bin").read_bytes() == CONTENT
    assert server.asked == [("/data.bin", None)]
    assert names(tmp_path / "sub") == ["data.bin"]


def test_a_partial_file_is_resumed_where_it_stopped(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT[:1000])
    assert download_file(f"{server.base}/data.bin", tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.asked == [("/data.bin", "bytes=1000-")]
    assert names(tmp_path) == ["data.bin"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    assert download_file(f"{server.base}/data.bin", tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("part", "requests"), [(CONTENT, 1), (CONTENT + b"more", 2)])
def test_a_complete_part_is_taken_and_a_longer_one_fetched_again(server, tmp_path, part, requests):
    (tmp_path / "data.bin.part").write_bytes(part)
    assert download_file(f"{server.base}/data.bin", tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(server.asked) == requests


def test_a_broken_connection_keeps_the_part_and_the_next_call_ends_it(server, tmp_path):
    server.break_after = 3000
    with pytest.raises(DownloadError, match="broke off"):
        download_file(f"{server.base}/data.bin", tmp_path / "data.bin")
    assert names(tmp_path) == ["data.bin.part"]
    server.break_after = None
    assert download_file(f"{server.base}/data.bin", tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.asked[-1] == ("/data.bin", "bytes=3000-")


def test_the_second_address_is_tried(server, tmp_path):
    ratings, metadata = KNOWN["Art"].files()
    server.files |= {f"/second/{ratings}": b"ratings", f"/second/{metadata}": b"metadata"}
    files = download("Art", tmp_path, bases=(f"{server.base}/first", f"{server.base}/second"))
    assert [file.name for file in files] == ["Arts_Crafts_and_Sewing.csv", "meta_Arts_Crafts_and_Sewing.json.gz"]
    assert [file.read_bytes() for file in files] == [b"ratings", b"metadata"]


def test_offline_the_user_is_told_what_to_fetch_and_run(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        download("Instrument", tmp_path, bases=(server.base,), timeout=2)
    for part in (
        "cannot be reached",
        "https://jmcauley.ucsd.edu/data/amazon_v2/categoryFilesSmall/Musical_Instruments.csv",
        "https://jmcauley.ucsd.edu/data/amazon_v2/metaFiles2/meta_Musical_Instruments.json.gz",
        "recbole-ilrec prepare Instrument --source amazon18 --path DIR",
        "recbole-ilrec prepare Instrument --source lcrec --path DIR",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_answer_other_than_success_is_reported(server, tmp_path):
    with pytest.raises(UserError, match="answers 404"):
        download("Game", tmp_path, bases=(server.base,))


def test_only_the_papers_datasets_can_be_downloaded(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'Instrument'"):
        download("Instruments", tmp_path)


def test_without_a_path_the_raw_files_of_a_known_dataset_are_downloaded(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline_module, "download", lambda name, folder: asked.append((name, folder)))
    with pytest.raises(UserError, match="is not a folder"):
        prepare("Game", "amazon18", None, tmp_path)
    assert asked == [("Game", tmp_path / ".amazon18")]
    assert amazon18.CORE == 5


def test_the_ways_to_get_a_dataset_name_the_commands():
    assert "prepare Game --source amazon18 --path DIR" in how_to_get("Game")
    assert "prepare mine --source clicks|lcrec|amazon18|sdpo --path DIR" in how_to_get("mine")
    assert known_dataset("mine") is None


@pytest.mark.parametrize("name", [*KNOWN, "Industrial"])
def test_each_named_dataset_has_its_properties(name):
    path = Path(__file__).parents[1] / f"properties/dataset/{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert values["user_inter_num_interval"] is None and values["item_inter_num_interval"] is None
    if name in KNOWN:
        assert all(url in path.read_text(encoding="utf-8") for url in KNOWN[name].urls())
