"""Links that lead out of an indexed folder are passed over unless asked for, and no error quotes other files."""

import os
import stat
import zipfile
from pathlib import Path

import pytest
from clipfake.errors import ImageError, SourceError
from clipfake.indexer.decoding.image import decode
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index, plan
from clipfake.indexer.index_run import IndexOptions
from clipfake.indexer.sources.folders import LINKS_OUT, expand, images_in
from clipfake.indexer.sources.image_ref import LINK_LEADS_OUT
from clipfake.indexer.sources.table_source import TableSource
from clipfake.indexer.sources.urls import refusal_of
from conftest import draw_image
from indexed import store_at


def linked(folder: Path) -> Path:
    """A folder with one image, a link to it, and links to a file and a folder outside."""
    for name in ("in/a.png", "out/b.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(draw_image("camera_a", len(name)))
    (folder / "in/inner.png").symlink_to("a.png")
    (folder / "in/outer.png").symlink_to(folder / "out/b.png")
    (folder / "in/folder").symlink_to(folder / "out")
    return folder / "in"


def test_links_out_are_counted_unless_followed(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    report = plan([folder])
    assert report.listed == 2
    assert report.passed_over[LINKS_OUT].files == 2
    assert [ref.key for ref in images_in(expand([folder], follow_links=True))] == [
        *("in/a.png", "in/inner.png", "in/outer.png", "in/folder/b.png")
    ]


def test_links_inside_are_read_and_links_named_are_followed(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    (tmp_path / "named").symlink_to(folder)
    for ref in images_in([tmp_path / "named"]):
        assert ref.byte_source.read()[0] == (folder / "a.png").read_bytes()


def test_image_exchanged_for_a_link_is_refused(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    refs = list(images_in([folder]))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "out/b.png")
    with pytest.raises(ImageError, match="leads out"):
        refs[0].byte_source.read()


@pytest.mark.parametrize("name", ["outer.png", "folder/b.png"])
def test_table_in_a_folder_does_not_lead_out_by_a_link(tmp_path: Path, name: str) -> None:
    folder = linked(tmp_path)
    (folder / "metadata.csv").write_text(f"file_name,label\na.png,real\n{name},real\n")
    report = index([folder], store_at(tmp_path / "s"), PlainEncoder())
    assert report.added == 1
    assert [reason.split(": ")[-1] for _, reason in report.skipped] == [LINK_LEADS_OUT]
    assert index(expand([folder], follow_links=True), store_at(tmp_path / "t"), PlainEncoder()).added == 2


def test_table_that_is_a_link_out_ends_the_run(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    (folder / "metadata.csv").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="--follow-links"):
        plan([folder])


def test_card_that_is_a_link_out_makes_numbers_unreadable(tmp_path: Path) -> None:
    folder = linked(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    (folder / "dataset_info.json").symlink_to(tmp_path / "card.json")
    (folder / "metadata.csv").write_text("file_name,label\na.png,1\n")
    assert "not known" in next(iter(images_in([folder]))).refused


def test_sync_keeps_rows_of_links_that_are_not_followed(tmp_path: Path) -> None:
    folder, store = linked(tmp_path), store_at(tmp_path / "s")
    index(expand([folder], follow_links=True), store, PlainEncoder())
    before = len(store.snapshot())
    assert index([folder], store, PlainEncoder(), IndexOptions(sync=True)).dropped == 0
    assert len(store.snapshot()) == before


def test_folder_links_do_not_multiply(tmp_path: Path) -> None:
    for level in range(12):
        (tmp_path / f"p/{level}").mkdir(parents=True)
        (tmp_path / f"p/{level}/a.png").write_bytes(draw_image("camera_a", level))
        for name in "xyz":
            (tmp_path / f"p/{level}/{name}").symlink_to(tmp_path / f"p/{level + 1}")
    assert plan([tmp_path / "p"]).listed == 12 + 11 * 3


def test_links_in_a_zip_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", draw_image("camera_a", 0))
        link = zipfile.ZipInfo("b.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../../etc/passwd")
    report = plan([tmp_path / "z.zip"])
    assert (report.listed, [over.reason for over in report.passed_over.values()]) == (
        1,
        ["links to other members of an archive"],
    )


def test_errors_quote_nothing_of_other_files(tmp_path: Path) -> None:
    secret = "root:x:0:0:root:/root:/bin/bash\n"
    with pytest.raises(ImageError) as error:
        decode(secret.encode())
    assert "root" not in str(error.value)
    for name in ("t.csv", "t.jsonl", "t.parquet", "t.zip", "t.tar"):
        (tmp_path / name).write_text(secret)
        with pytest.raises(SourceError) as refusal:
            plan([tmp_path / name])
        assert "root:x" not in str(refusal.value)


def test_table_at_a_url_names_no_file_of_this_machine() -> None:
    table = TableSource("memory://bucket/t.csv")
    for name in ("/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(ImageError, match="files of this machine"):
            table._locate(name)[2].read()
    assert refusal_of("memory://bucket/x::file:///etc/passwd")


def test_deep_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.png").write_bytes(draw_image("camera_a", 0))
    here = os.open(tmp_path / "p", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert plan([tmp_path / "p"]).listed == 1
