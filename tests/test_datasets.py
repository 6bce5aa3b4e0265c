"""The registry: cards tell the truth, downloads are verified, resumed and atomic.

Downloads run against a server on 127.0.0.1 that can drop a connection at a chosen byte.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from structdiff import datasets
from structdiff.datasets import DatasetCard, DatasetError, DatasetFile
from structdiff.errors import StructDiffError

CONTENT = b"smiles\n" + b"\n".join(b"C" * (1 + n % 9) + b"O" * (n // 9 % 7) for n in range(60_000))

CHUNK = 8192  # what the download writes at a time; a drop between two chunks loses nothing


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Server:
    """What the local server sends, where it hangs up, and what it was asked."""

    content: bytes = CONTENT
    drop_at: list[int] = field(default_factory=list)  # one entry per request: bytes sent, then drop
    ranges: list[str | None] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    honours_ranges: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with state.lock:
                asked = self.headers.get("Range")
                state.ranges.append(asked)
                limit = state.drop_at.pop(0) if state.drop_at else len(state.content)
            start = int(re.findall(r"\d+", asked)[0]) if asked and state.honours_ranges else 0
            body = state.content[start:]
            if asked and state.honours_ranges and not body:
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:limit])
            with state.lock:
                state.sent += len(body[:limit])

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}/molecules.csv"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRUCTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STRUCTDIFF_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path / "cache"


def make_card(server: Server, *, convert: str = "as_is", expected: bytes = CONTENT) -> DatasetCard:
    stored = gzip.compress(expected, mtime=0) if convert == "gzip" else expected
    file = DatasetFile(
        role="smiles",
        path="molecules/example.csv.gz" if convert == "gzip" else "molecules/example.csv",
        sha256=sha(stored),
        bytes=len(stored),
        url=server.url,
        source_sha256=sha(expected),
        convert=convert,
        content_sha256=sha(expected) if convert == "gzip" else None,
    )
    return DatasetCard(
        name="example",
        title="an example",
        group="molecules",
        format="CSV",
        licence="none",
        citation=("none",),
        conversion="none needed.",
        files=(file,),
    )


def visible(cache: Path) -> list[str]:
    return sorted(
        file.name
        for file in cache.rglob("*")
        if file.is_file() and not file.name.endswith((".lock", ".part"))
    )


# ---------------------------------------------------------------- the cards


def test_the_registry_has_the_sets_of_the_gdss_benchmark() -> None:
    # Jo et al. 2022, sections 4.1 and 4.2
    known = {card.name for card in datasets.list_datasets()}
    assert {"qm9", "zinc250k", "community_small", "ego_small", "enzymes", "grid"} <= known


def embedded(card: DatasetCard) -> bool:
    return all(file.convert == datasets.EMBEDDED for file in card.files)


PUBLIC = [card for card in datasets.list_datasets() if not embedded(card)]
EMBEDDED = [card for card in datasets.list_datasets() if embedded(card)]


@pytest.mark.parametrize("card", PUBLIC, ids=lambda card: card.name)
def test_a_card_names_its_licence_citation_splits_and_a_pinned_source(card: DatasetCard) -> None:
    assert card.licence and card.citation and card.splits and card.format
    for file in card.files:
        assert re.search(r"/[0-9a-f]{40}/", file.url), "a source is pinned at a commit"
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert re.fullmatch(r"[0-9a-f]{64}", file.source_sha256)
        assert file.convert in {*datasets.CONVERSIONS, "by_hand"}
        assert file.path.startswith(f"{card.group}/")


@pytest.mark.parametrize("card", EMBEDDED, ids=lambda card: card.name)
def test_an_embedded_set_comes_with_the_package_whatever_the_folders(
    card: DatasetCard, cache: Path
) -> None:
    assert card.licence and card.citation and card.splits and card.format
    found = datasets.fetch(card.name)
    assert found == datasets.path(card.name)
    assert sha(found.read_bytes()) == card.files[0].sha256
    assert not cache.exists()


@pytest.mark.parametrize("card", EMBEDDED, ids=lambda card: card.name)
def test_an_embedded_set_names_the_script_that_made_it(card: DatasetCard) -> None:
    root = Path(datasets.__file__).parents[1]
    assert all((root / file.url).is_file() for file in card.files)


def test_a_damaged_embedded_set_asks_for_the_package_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = datasets.card("hourly_demand")
    monkeypatch.setattr(datasets, "_registry_folder", lambda: tmp_path)
    with pytest.raises(DatasetError, match=r"hourly_demand\.csv: not the file.*install the pack"):
        datasets.fetch(card)


@pytest.mark.parametrize("card", PUBLIC, ids=lambda card: card.name)
def test_the_hashes_of_a_card_are_those_of_the_real_files(
    card: DatasetCard, data_dir: Path
) -> None:
    for file in card.files:
        data = (data_dir / file.path).read_bytes()
        assert sha(data) == file.sha256
        assert len(data) == file.bytes
        if file.content_sha256 is not None:
            assert sha(gzip.decompress(data)) == file.content_sha256


@pytest.mark.parametrize(
    ("name", "train", "test"), [("qm9", 120_803, 13_082), ("zinc250k", 224_568, 24_887)]
)
def test_load_smiles_gives_the_gdss_split(
    name: str, train: int, test: int, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sizes of the lists in the GDSS repository: data/valid_idx_qm9.json, valid_idx_zinc250k.json
    monkeypatch.setenv("STRUCTDIFF_DATA", str(data_dir))
    train_smiles, test_smiles = datasets.load_smiles(name)
    assert (len(train_smiles), len(test_smiles)) == (train, test)


def test_the_qm9_test_split_keeps_the_published_order(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the first entry of valid_idxs is "007278"; row 7278 of the CSV is this molecule
    monkeypatch.setenv("STRUCTDIFF_DATA", str(data_dir))
    _, test_smiles = datasets.load_smiles("qm9")
    assert test_smiles[0] == "CC(O)C(O)CC#N"


def test_an_unknown_dataset_is_answered_with_the_closest_and_the_known_ones() -> None:
    with pytest.raises(StructDiffError, match=r"mean 'zinc250k'\?.*known: .*community_small.*qm9"):
        datasets.card("zinc250")


def test_an_unknown_role_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DatasetError, match="it has: smiles, test_rows"):
        datasets.path("qm9", "validation")


def test_smiles_are_refused_from_a_set_of_graphs() -> None:
    with pytest.raises(DatasetError, match="holds no SMILES; these do: qm9, zinc250k"):
        datasets.load_smiles("grid")


def test_a_card_that_lacks_an_entry_is_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nfiles = []\n')
    with pytest.raises(DatasetError, match=r"mine\.toml.*'title'"):
        datasets.read_card(tmp_path / "mine.toml")


# ---------------------------------------------------------------- where files are looked for


def test_the_data_folder_comes_before_the_cache(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTDIFF_DATA", str(tmp_path))
    (tmp_path / "molecules").mkdir()
    (tmp_path / "molecules/example.csv").write_bytes(CONTENT)
    assert datasets.fetch(make_card(server)) == tmp_path / "molecules/example.csv"
    assert server.ranges == []


def test_a_damaged_file_in_the_data_folder_is_named_and_left_alone(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTDIFF_DATA", str(tmp_path))
    (tmp_path / "molecules").mkdir()
    damaged = tmp_path / "molecules/example.csv"
    damaged.write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match=rf"{re.escape(str(damaged))}: not the file"):
        datasets.fetch(make_card(server))
    assert damaged.read_bytes() == CONTENT[:-1]


def test_path_of_an_absent_dataset_says_how_to_get_it(cache: Path) -> None:
    with pytest.raises(DatasetError, match="structdiff datasets fetch qm9"):
        datasets.path("qm9")


# ---------------------------------------------------------------- downloads


def test_a_fetched_file_is_the_published_one_and_is_fetched_once(
    server: Server, cache: Path
) -> None:
    card = make_card(server)
    assert datasets.fetch(card, progress=False).read_bytes() == CONTENT
    datasets.fetch(card, progress=False)
    assert len(server.ranges) == 1
    assert visible(cache) == ["example.csv"]


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, cache: Path) -> None:
    server.drop_at = [12 * CHUNK]
    assert datasets.fetch(make_card(server), progress=False).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={12 * CHUNK}-"]
    assert server.sent == len(CONTENT)


def test_an_interrupted_download_is_invisible_and_resumed_by_the_next_call(
    server: Server, cache: Path
) -> None:
    server.drop_at = [12 * CHUNK, 2 * CHUNK, 4 * CHUNK]
    with pytest.raises(DatasetError, match="147,456 bytes are kept and the next try resumes there"):
        datasets.fetch(make_card(server), progress=False)
    assert visible(cache) == []
    assert datasets.fetch(make_card(server), progress=False).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={18 * CHUNK}-"
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, cache: Path) -> None:
    server.drop_at = [12 * CHUNK]
    server.honours_ranges = False
    assert datasets.fetch(make_card(server), progress=False).read_bytes() == CONTENT


def test_a_part_that_was_already_complete_is_used(server: Server, cache: Path) -> None:
    card = make_card(server)
    part = cache / "downloads" / f"{card.files[0].source_sha256[:16]}-molecules.csv.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert datasets.fetch(card, progress=False).read_bytes() == CONTENT
    assert server.sent == 0


def test_corrupted_content_is_rejected_and_leaves_nothing_behind(
    server: Server, cache: Path
) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DatasetError, match=f"damaged.*{sha(CONTENT)}.*nothing was kept"):
        datasets.fetch(make_card(server), progress=False)
    assert visible(cache) == []
    assert list(cache.rglob("*.part")) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, cache: Path) -> None:
    card = make_card(server)
    datasets.fetch(card, progress=False).write_bytes(b"damaged")
    assert datasets.fetch(card, progress=False).read_bytes() == CONTENT


def test_an_unreachable_source_says_what_to_do(server: Server, cache: Path) -> None:
    card = make_card(server)
    closed = replace(card.files[0], url="http://127.0.0.1:9/molecules.csv")
    with pytest.raises(
        DatasetError, match=r"'example'.*127\.0\.0\.1:9.*refused.*STRUCTDIFF_DATA.*example\.csv"
    ):
        datasets.fetch(replace(card, files=(closed,)), progress=False)


def test_a_source_that_answers_404_says_so(server: Server, cache: Path) -> None:
    class Missing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Missing)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    card = make_card(server)
    gone = replace(card.files[0], url=f"http://127.0.0.1:{httpd.server_port}/molecules.csv")
    with pytest.raises(DatasetError, match="404"):
        datasets.fetch(replace(card, files=(gone,)), progress=False)
    httpd.shutdown()
    httpd.server_close()
    assert visible(cache) == []


def test_concurrent_calls_download_once_and_agree(server: Server, cache: Path) -> None:
    card = make_card(server)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: datasets.fetch(card, progress=False), range(8)))
    assert {file.read_bytes() for file in found} == {CONTENT}
    assert server.sent == len(CONTENT)


def test_a_full_disk_is_named_with_the_remedy(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DatasetError, match=r"no space left.*example\.csv.*STRUCTDIFF_CACHE"):
        datasets.fetch(make_card(server), progress=False)
    assert visible(cache) == []


# ---------------------------------------------------------------- conversions


def test_a_compressed_copy_is_recognised_by_its_content(server: Server, cache: Path) -> None:
    card = make_card(server, convert="gzip")
    stored = datasets.fetch(card, progress=False)
    other_compressor = gzip.compress(CONTENT, compresslevel=1, mtime=7)
    assert other_compressor != stored.read_bytes()
    stored.write_bytes(other_compressor)
    datasets.fetch(card, progress=False)
    assert len(server.ranges) == 1


def test_a_conversion_that_gives_other_content_is_rejected(server: Server, cache: Path) -> None:
    card = make_card(server, convert="gzip")
    other = replace(card.files[0], sha256=sha(b"other"), content_sha256=sha(b"other"))
    with pytest.raises(DatasetError, match=r"as made from .* has the wrong hash"):
        datasets.fetch(replace(card, files=(other,)), progress=False)
    assert visible(cache) == []


def test_pickled_graphs_are_never_loaded_but_their_source_is_named(cache: Path) -> None:
    with pytest.raises(DatasetError, match=r"never loads.*grid\.pkl.*STRUCTDIFF_DATA.*grid\.npz"):
        datasets.fetch("grid")


def test_without_an_override_the_cache_is_that_of_the_platform(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pooch

    monkeypatch.delenv("STRUCTDIFF_CACHE", raising=False)
    assert datasets.cache_folder() == Path(os.fspath(pooch.os_cache("structdiff")))
