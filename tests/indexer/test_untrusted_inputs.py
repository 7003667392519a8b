"""Malicious or damaged archives, tables, images and encoders quickly raise a clear error."""

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.errors import ClipfakeError, EncoderError, ImageError, SourceError
from clipfake.indexer.decoding.image import decode, pixels_of, thumbnail
from clipfake.indexer.encoders.checkpoint import open_checkpoint
from clipfake.indexer.encoders.clip_vision import VisionConfig
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.preprocess import Preprocess
from clipfake.indexer.encoders.resize import resize_matrix
from clipfake.indexer.sources.archives import tar_archive
from clipfake.indexer.sources.archives.tar_archive import TarArchive
from clipfake.indexer.sources.archives.zip_archive import ZipArchive
from clipfake.indexer.sources.folders import FolderSource
from clipfake.indexer.sources.image_ref import ImageRef, PassedOver
from clipfake.indexer.sources.labels import label_from_row
from clipfake.indexer.sources.table_source import TableSource
from clipfake.indexer.sources.tables import reading
from clipfake.indexer.sources.tables.reading import read_rows
from clipfake.simulated.standin_encoder import build_standin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

DEEP = b"[" * 100_000
DIGITS = b"9" * 5000  # more than Python parses as a number


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (5, 7), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    """Tar header block with any size."""
    block = bytearray(tarfile.TarInfo(name).tobuf())
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157], block[148:156] = kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def form(**fields: str) -> bytes:
    """Pax header of a tar."""
    lines = b""
    for name, value in fields.items():
        line = f" {name}={value}\n".encode()
        length = next(n for n in range(len(line), 999) if len(str(n)) + len(line) == n)
        lines += str(length).encode() + line
    return header("pax", len(lines), b"x") + lines.ljust(512, b"\0")


ONE = header("a/1.png", 3) + b"abc".ljust(512, b"\0")
TWO = header("a/2.png", 3) + b"abc".ljust(512, b"\0")
END = b"\0" * 1024


def tar_at(folder: Path, content: bytes, name: str = "t.tar") -> TarArchive:
    path = folder / name
    path.write_bytes(content)
    return TarArchive(str(path))


def zip_at(folder: Path, files: dict[str, bytes], change: Callable[[bytes], bytes] = bytes) -> ZipArchive:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    (folder / "z.zip").write_bytes(change(out.getvalue()))
    return ZipArchive(str(folder / "z.zip"))


def read(images: Any) -> list[ImageRef]:
    """Check that a store could keep the images, and try to read them."""
    checked = []
    for ref in images:
        if isinstance(ref, PassedOver):
            continue
        for text in (ref.key, ref.source, ref.generator, ref.category, ref.refused):
            assert text.isascii() or text.encode("utf-8", "surrogateescape")
        ref.key.encode()
        checked.append(ref)
        try:
            size, time = ref.byte_source.stat()
            assert size >= -1 and abs(time) < 1 << 63
            ref.byte_source.read()
        except ImageError:
            pass
    return checked


# Tar


@pytest.mark.parametrize("size", ["-1536", "-1", "x"])
def test_tar_with_negative_size_does_not_loop(size: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a readable tar"):
        read(tar_at(tmp_path, ONE + form(size=size) + TWO + END).images())


def test_tar_with_negative_number_in_header_is_refused(tmp_path: Path) -> None:
    negative = b"\xff" * 8 + (-1024).to_bytes(4, "big", signed=True)
    with pytest.raises(SourceError, match="-1024 bytes"):
        read(tar_at(tmp_path, ONE + header("b.png", negative) + END).images())


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz"])
def test_damaged_tar_header_raises_source_error(name: str, tmp_path: Path) -> None:
    content = ONE + b"\x01" * 512 + TWO + END
    if name.endswith("gz"):
        import gzip

        content = gzip.compress(content)
    with pytest.raises(SourceError, match="it is damaged"):
        read(tar_at(tmp_path, content, name).images())


@pytest.mark.parametrize("time", ["nan", "inf", "1e300", "-1e300"])
def test_tar_with_invalid_time_is_read(time: str, tmp_path: Path) -> None:
    (ref,) = read(tar_at(tmp_path, form(mtime=time) + ONE + END).images())
    assert ref.byte_source.stat() == (3, 0)


@pytest.mark.parametrize("fields", [{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"GNU.sparse.map": "1,x"}])
def test_invalid_sparse_map_raises_source_error(fields: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a readable tar"):
        read(tar_at(tmp_path, form(**fields) + ONE + END).images())


def test_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="extended header of 8,589,934,591 bytes"):
        read(tar_at(tmp_path, header("pax", 8**11 - 1, b"x")).images())


def test_long_chain_of_headers_raises_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a readable tar"):
        read(tar_at(tmp_path, form(path="a.png") * 2000 + ONE + END).images())


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x04", b"BZh9", b"\xfd7zXZ\0", b"", b"\0" * 700])
def test_truncated_compressed_tar_is_refused(content: bytes, tmp_path: Path) -> None:
    tar = tar_at(tmp_path, content, "t.tar.gz")
    if content == b"\0" * 700:  # an empty archive
        assert read(tar.images()) == []
    else:
        with pytest.raises(SourceError, match="not a readable tar"):
            read(tar.images())


def test_files_of_one_name_are_limited_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(tar_archive, "HELD_LIMIT", 5)
    many = b"".join(header(f"a.{i}.png", 3) + b"abc".ljust(512, b"\0") for i in range(3))
    with pytest.raises(SourceError, match="over 5 bytes named a"):
        read(tar_at(tmp_path, gzip.compress(many + END), "t.tar.gz").images())
    assert len(read(tar_at(tmp_path, many + END).images())) == 3  # read in place: nothing is held


@pytest.mark.parametrize("sidecar", [b'{"target": [1]}', b'{"target": ' + DIGITS + b"}", DEEP, b'{"label": "\\ud800"}'])
def test_invalid_sidecar_does_not_end_the_run(sidecar: bytes, tmp_path: Path) -> None:
    beside = header("a/1.json", len(sidecar)) + sidecar.ljust(-(-len(sidecar) // 512) * 512, b"\0")
    assert len(read(tar_at(tmp_path, beside + ONE + TWO + END).images())) == 2


# Zip


def test_zip_offset_beyond_the_file_is_one_bad_image(tmp_path: Path) -> None:
    def far(content: bytes) -> bytes:
        at = content.find(b"PK\x01\x02")
        wide = struct.pack("<HHQ", 1, 8, 2**64 - 1)
        record = bytearray(content[at : content.find(b"PK\x05\x06")])
        record[30:32], record[42:46] = struct.pack("<H", len(wide)), b"\xff" * 4
        record += wide
        return content[:at] + record + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), at, 0)

    (ref,) = read(zip_at(tmp_path, {"a.png": b"abc"}, far).images())
    with pytest.raises(ImageError):
        ref.byte_source.read()


def test_zip_table_beyond_the_archive_raises_source_error(tmp_path: Path) -> None:
    def endless(content: bytes) -> bytes:
        at = content.find(b"PK\x01\x02")
        wide = struct.pack("<HHQQ", 1, 16, 2**62, 2**62)
        record = bytearray(content[at : content.find(b"PK\x05\x06")])
        record[30:32], record[20:28] = struct.pack("<H", len(wide)), b"\xff" * 8
        record += wide
        return content[:at] + record + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), at, 0)

    with pytest.raises(SourceError, match="not a readable table"):
        read(zip_at(tmp_path, {"metadata.csv": b"file_name,label\na.png,fake\n"}, endless).images())


def test_name_with_nul_is_not_a_table(tmp_path: Path) -> None:
    def cut(content: bytes) -> bytes:
        return content.replace(b"d-metadata.csv", b"d\0metadata.csv").replace(b"e-/metadata.csv", b"e\0/metadata.csv")

    made = zip_at(tmp_path, {"d-metadata.csv": b"", "e-/metadata.csv": b"", "e-.png": b""}, cut)
    assert made.count() == 1 and len(read(made.images())) == 1


def test_damaged_parquet_in_zip_raises_source_error(tmp_path: Path) -> None:
    made = zip_at(tmp_path, {"metadata.parquet": b"PAR1....PAR1"}, lambda content: content.replace(b"....", b"..,."))
    with pytest.raises(SourceError, match="size and checksum"):
        made.count()
    with pytest.raises(SourceError, match="size and checksum"):
        read(made.images())


# Tables


@pytest.mark.parametrize(
    "line",
    [
        b'{"label": "fake"}',
        b'{"file_name": "b.png", "label": [1]}',
        b'{"file_name": {"a": []}, "target": {}}',
        b'{"file_name": "\\ud800.png", "label": 1}',
        b'{"file_name": "b.png", "target": "' + b"1" * 5000 + b'"}',
        b'{"file_name": null, "generator": ["\\udfff"], "label": "fake", "category": 1e999}',
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_invalid_table_line_is_refused_alone(line: bytes, packed: bool, tmp_path: Path) -> None:
    result = b'{"file_name": "a.png", "label": "fake"}\n' + line + b'\n{"file_name": "c.png", "label": "real"}\n'
    if packed:
        images = read(zip_at(tmp_path, {"metadata.jsonl": result}).images())
    else:
        (tmp_path / "metadata.jsonl").write_bytes(result)
        (tmp_path / "t.jsonl").write_bytes(result)
        assert len(read(TableSource(str(tmp_path / "t.jsonl")).images())) == 3
        images = read(FolderSource(tmp_path).images())
    assert len(images) == 3 and not images[0].refused and not images[2].refused


@pytest.mark.parametrize("line", [DEEP, b'{"target": ' + DIGITS + b"}", b"\xff\xfe", b"{} {}", b"null"])
def test_unparsable_table_line_raises_source_error(line: bytes) -> None:
    with pytest.raises(SourceError, match=r"t\.jsonl is not a readable table"):
        list(read_rows("t.jsonl", io.BytesIO(b'{"file_name": "a.png"}\n' + line + b"\n")))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_endless_table_line_raises_source_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 1000)
    with pytest.raises(SourceError, match="a line of 1,000 characters or more"):
        list(read_rows(name, io.BytesIO(b"a," * 10_000)))


def test_csv_with_too_many_columns_is_refused() -> None:
    with pytest.raises(SourceError, match="names 1,001 columns"):
        list(read_rows("t.csv", io.BytesIO(b"," * 1000 + b"\n1\n" * 10)))


def test_parquet_with_invalid_text_raises_source_error() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    bad = pyarrow.array([b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"image_path": bad, "target": [1]}), out)
    with pytest.raises(SourceError, match="not a readable table"):
        list(read_rows("t.parquet", io.BytesIO(out.getvalue())))


def test_repeated_parquet_text_is_in_memory_once() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    out, word = io.BytesIO(), "a" * 100_000
    parquet.write_table(pyarrow.table({"image_path": [word] * 300, "target": ["1"] * 300}), out, compression="zstd")
    assert len(out.getvalue()) < 5000
    paths = [row["image_path"] for number, row in read_rows("t.parquet", io.BytesIO(out.getvalue())) if number]
    assert paths == [word] * 300 and len(set(map(id, paths))) == 1


@pytest.mark.parametrize("value", [[1], {}, "1" * 5000, True, 1e999, float("nan"), None, 2**70])
def test_invalid_target_gives_a_short_reason(value: Any) -> None:
    answer = label_from_row({"target": value})
    assert isinstance(answer, str) and len(answer) < 200


# Images


def test_jpeg_with_too_many_scans_is_refused() -> None:
    small = encoded("JPEG", "L", (1600, 1600), progressive=True)
    last = small.rfind(b"\xff\xda")
    assert decode(small[:-2] + small[last:-2] * 3 + b"\xff\xd9").width == 1600
    with pytest.raises(ImageError, match=r"a JPEG of 1,\d\d\d scans"):
        decode(small[:-2] + small[last : last + 10] * 1000 + b"\xff\xd9")


def tiff(*layout: tuple[int, int], big_endian: bool = False) -> bytes:
    """A TIFF of 8 x 8 grey pixels with more tags of its layout."""
    content, order = zlib.compress(bytes(1000)), ">" if big_endian else "<"
    start = 8 + 2 + 12 * (8 + len(layout)) + 4
    where = (324, 325) if layout[-1][0] in (322, 323) else (273, 279)
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), *layout]
    tags += [(where[0], start), (where[1], len(content))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags, key=lambda t: t[0]))
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + content


@pytest.mark.parametrize("big_endian", [False, True])
def test_tiff_with_huge_tiles_is_refused(big_endian: bool) -> None:
    assert decode(tiff((322, 16), (323, 16), big_endian=big_endian)).width == 8
    for layout, reason in (
        ([(322, 16_000), (323, 16_000)], "tiles of 16000 x 16000"),
        ([(322, 2**31), (323, 2**31)], "tiles of"),
        ([(322, 16_000), (322, 16), (323, 16_000), (323, 16)], "twice"),  # libtiff takes the first, Pillow the last
        ([(322, 16), (322, 16_000), (323, 16), (323, 16_000)], "twice"),
        ([(256, 16_000), (278, 16_000)], "twice"),
        ([(277, 60), (278, 8)], "twice"),
    ):
        content = tiff(*layout, big_endian=big_endian)
        with pytest.raises(ImageError, match=reason):
            decode(content)
    huge = tiff((322, 16_000), (323, 16_000), big_endian=big_endian)
    with Pillow.open(io.BytesIO(huge)) as opened, pytest.raises(ImageError, match="tiles of 16000 x 16000"):
        pixels_of(opened)


def test_eps_is_not_an_image() -> None:
    with pytest.raises(ImageError, match="not an image"):
        decode(encoded("EPS"))


@pytest.mark.parametrize("size", [(1, 101), (101, 1), (2, 1000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_elongated_image_is_refused(size: tuple[int, int], kind: str) -> None:
    with pytest.raises(ImageError, match="is a strip"):
        decode(encoded(kind, size=size))


@pytest.mark.parametrize("cropped", [1, 16, 17])
@pytest.mark.parametrize("length, new", [(40, 33), (31, 64), (200, 16 + 1)])
def test_cropped_resize_equals_the_middle(length: int, new: int, cropped: int) -> None:
    whole, top = resize_matrix(length, new, "bicubic"), (new - cropped) // 2
    assert np.array_equal(resize_matrix(length, new, "bicubic", cropped), whole[top : top + cropped])


# Encoders

CLIP = {"size": 224, "crop_size": 224, "do_center_crop": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": 10**9},
        {"size": -5},
        {"size": "x"},
        {"size": None},
        {"size": [1, 2, 3]},
        {"size": {"longest_edge": 224}},
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": 224}},
        {"size": {"shortest_edge": float("nan")}},
        {"size": {"shortest_edge": float("inf")}},
        {"crop_size": -1},
        {"crop_size": 10**9},
        {"crop_size": [224]},
        {"resample": "bicubic"},
        {"resample": None},
        {"resample": 6},
        {"resample": True},
        {"rescale_factor": float("nan")},
        {"rescale_factor": 0},
        {"image_mean": None},
        {"image_mean": [0.5]},
        {"image_mean": ["a", "b", "c"]},
        {"image_mean": [float("inf")] * 3},
        {"image_std": [0, 0, 0]},
        {"image_std": [-1, 1, 1]},
        {"image_std": 0},
    ],
)
def test_invalid_preprocessing_raises_encoder_error(change: dict[str, Any]) -> None:
    Preprocess.from_config(CLIP)
    with pytest.raises(EncoderError, match="preprocessing"):
        Preprocess.from_config(CLIP | change)


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


def copied(standin: Path, folder: Path, **changes: bytes) -> str:
    for file in standin.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, content in changes.items():
        (folder / f"{name}.json").write_bytes(content)
    return str(folder)


@pytest.mark.parametrize("content", [DEEP, DIGITS, b"[]", b"{", b"\xff", b'{"size": {}}'])
@pytest.mark.parametrize("name", ["config", "preprocessor_config"])
def test_invalid_configuration_raises_encoder_error(name: str, content: bytes, standin: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError):
        load_encoder(copied(standin, tmp_path, **{name: content}))


@pytest.mark.parametrize(
    "vision",
    [
        {"patch_size": 0},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**12},
        {"hidden_size": "x"},
        {"num_attention_heads": 0},
        {"hidden_act": ["gelu"]},
        {"image_size": -1},
        {"image_size": 64},
        {"layer_norm_eps": "x"},
    ],
)
def test_invalid_model_sizes_raise_encoder_error(vision: dict[str, Any], standin: Path, tmp_path: Path) -> None:
    config = json.loads((standin / "config.json").read_text())
    config["vision_config"] |= vision
    with pytest.raises(EncoderError):
        load_encoder(copied(standin, tmp_path, config=json.dumps(config).encode()))


@pytest.mark.parametrize("value", [b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 1, "b": "c"}}', DEEP])
def test_invalid_weights_index_raises_encoder_error(value: bytes, standin: Path, tmp_path: Path) -> None:
    folder = copied(standin, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_bytes(value)
    with pytest.raises(EncoderError, match="no valid weight_map"):
        load_encoder(folder)


def test_weights_outside_the_folder_are_not_read(standin: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    checkpoint = copied(standin, inner)
    (inner / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (inner / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EncoderError, match="no complete weights"):
        open_checkpoint(checkpoint)


def test_code_in_an_encoder_folder_is_never_run(standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = copied(standin, tmp_path, config=b'{"model_type": "mine", "auto_map": {"AutoConfig": "c.C"}}')
    (tmp_path / "c.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EncoderError):
        load_encoder(checkpoint)
    assert not (tmp_path / "executed").exists()


def test_boolean_model_size_raises_encoder_error() -> None:
    with pytest.raises(EncoderError, match="invalid sizes"):
        VisionConfig(width=True, heads=5)


# Any change of a real file


def mutations_of(content: bytes) -> st.SearchStrategy[bytes]:
    """Mutations of a file: bits flipped, truncated, a piece copied or removed, or a number made huge."""
    positions = st.integers(0, len(content) - 1)
    number = st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"-1", b"\xff" * 8, b"9" * 20])

    @st.composite
    def mutations(draw: st.DrawFn) -> bytes:
        mutated = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            position, how = draw(positions), draw(st.integers(0, 4))
            if how == 0 and position < len(mutated):
                mutated[position] ^= 1 << draw(st.integers(0, 7))
            elif how == 1:
                del mutated[position:]
            elif how == 2:
                result = draw(number)
                mutated[position : position + len(result)] = result
            elif how == 3:
                start, length = draw(positions), draw(st.integers(1, 600))
                mutated[position:position] = mutated[start : start + length]
            else:
                del mutated[position : position + draw(st.integers(1, 30))]
        return bytes(mutated)

    return mutations()


ANY = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None
)
PICTURE = encoded("PNG")
TABLES = {
    "csv": b"filename,image_path,target,category\na,1.png,1,c\n",
    "jsonl": b'{"file_name":"1.png","label":"fake"}\n',
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA"])
def test_mutated_image_decodes_or_raises_image_error(kind: str) -> None:
    @ANY
    @given(mutations_of(encoded(kind)))
    def holds(content: bytes) -> None:
        try:
            pixels = decode(content).pixels
        except ImageError:
            return
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
        assert thumbnail(pixels)

    holds()


def readable(images: Iterable[ImageRef | PassedOver]) -> list[str]:
    """Decode all images and return their keys."""
    keys = []
    for image in images:
        if isinstance(image, ImageRef) and not image.refused:
            decode(image.byte_source.read()[0])
            keys.append(image.key)
    return keys


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mode, name", [("w", "t.tar"), ("w:gz", "t.tar.gz"), ("w:xz", "t.tar.xz")])
def test_mutated_tar_is_read_or_raises_source_error(kind: int, mode: Any, name: str, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=kind) as made:
        for inside, content in [
            ("d/metadata.csv", TABLES["csv"]),
            ("d/1.png", PICTURE),
            ("é" * 120 + "/2.png", PICTURE),
        ]:
            member = tarfile.TarInfo(inside)
            member.size, member.mtime = len(content), 1.5
            made.addfile(member, io.BytesIO(content))
    assert len(readable(tar_at(tmp_path, out.getvalue(), name).images())) == 2  # the unchanged file is read

    @ANY
    @given(mutations_of(out.getvalue()))
    def holds(content: bytes) -> None:
        with suppress(SourceError):
            read(tar_at(tmp_path, content, name).images())

    holds()


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_mutated_zip_is_read_or_raises_source_error(suffix: str, method: int, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr(f"d/metadata.{suffix}", TABLES[suffix])
        made.writestr("d/1.png", PICTURE)
        with made.open("é/2.png", "w", force_zip64=True) as file:
            file.write(PICTURE)
    assert len(readable(zip_at(tmp_path, {}, lambda _: out.getvalue()).images())) == 2

    @ANY
    @given(mutations_of(out.getvalue()))
    def holds(content: bytes) -> None:
        source = zip_at(tmp_path, {}, lambda _: content)
        try:
            assert (source.count() or 0) >= 0
            read(source.images())
        except SourceError:
            pass

    holds()


@pytest.mark.parametrize("suffix", TABLES)
def test_mutated_table_is_read_or_raises_source_error(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"metadata.{suffix}").write_bytes(TABLES[suffix])
    (tmp_path / "1.png").write_bytes(PICTURE)
    assert readable(FolderSource(tmp_path).images())

    @ANY
    @given(mutations_of(TABLES[suffix] * 3))
    def holds(content: bytes) -> None:
        (tmp_path / f"metadata.{suffix}").write_bytes(content)
        with suppress(SourceError):
            read(FolderSource(tmp_path).images())

    holds()


SIDES = st.dictionaries(st.sampled_from(["height", "width", "shortest_edge"]), st.integers() | st.floats())
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | SIDES
VALUES |= st.lists(st.floats(), max_size=3)  # type: ignore[operator]


@ANY
@given(st.dictionaries(st.sampled_from([*CLIP, "resample", "rescale_factor"]), VALUES))
def test_any_preprocessing_is_valid_or_raises_encoder_error(change: dict[str, Any]) -> None:
    try:
        result = Preprocess.from_config(CLIP | change)
    except ClipfakeError:
        return
    assert 0 < max(result.short, result.height) <= 8192
