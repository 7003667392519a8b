"""The command line: stdout, stderr and exit codes."""

import csv
import errno
import io
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from clipfake.cli import main, spread
from clipfake.show.phrasing import CAVEAT
from clipfake.show.verdict_panel import scale
from clipfake.simulated.images import SOURCES, simulated, write_sample
from clipfake.store.space import Space
from clipfake.store.store import Store
from PIL import Image

COUNT = 15  # images of each of seven sources


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:  # type: ignore[type-arg]
        [line] = self.out.splitlines()
        return json.loads(line)  # type: ignore[no-any-return]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def ran(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        output = capsys.readouterr()
        return Ran(code, output.out, output.err)

    return ran


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sample(tmp_path_factory.mktemp("sample"), images_per_source=COUNT)


@pytest.fixture(scope="module")
def store(sample: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "store"
    for command in (["index", "--folders", *sample, "--encoder", "plain"], ["train", "--from-store", "--epochs", 2]):
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in (*command, "--store", folder, "--json")])
        assert not ended.value.code
    return folder


def test_folders_as_list_or_pattern(sample: list[Path], run) -> None:  # type: ignore[no-untyped-def]
    listed = run("index", "--folders", *sample, "--dry-run", "--json")
    pattern = run("index", "--folders", sample[0].parent / "*", "--dry-run", "--json")
    assert listed.code == pattern.code == 0
    assert listed.json["sources"] == pattern.json["sources"]
    assert {row["source"]: row["rows"] for row in listed.json["sources"]} == {s.name: COUNT for s in SOURCES}
    assert spread(["--folders", "a", "b", "--json"]) == ["--folders", "a", "--folders", "b", "--json"]


def test_indexing_twice_adds_nothing(sample: list[Path], store: Path, run) -> None:  # type: ignore[no-untyped-def]
    again = run("index", "--folders", *sample, "--store", store, "--json")
    assert again.code == 0
    assert (again.json["added"], again.json["known"], again.json["skipped"]) == (0, COUNT * len(SOURCES), [])
    assert "images_per_second" in again.json


def test_training_reports_splits_and_baselines(store: Path, run) -> None:  # type: ignore[no-untyped-def]
    output = run("train", "--from-store", "--store", store, "--epochs", 2, "--head", "second", "--json")
    assert output.code == 0
    for part in ("train", "validation", "test"):
        assert {"n", "accuracy", "auc"} <= output.json["head"][part].keys()
    assert "auc" in output.json["baselines"]["linear_probe"]["test"]
    assert "auc" in output.json["detector"]["test"]
    assert (store / "heads" / "second" / "head.json").exists()


def test_training_writes_no_pickle(store: Path) -> None:
    kinds = {path.suffix for path in (store / "heads").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors"}


def test_query_prints_one_json_line_per_image(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jpg").write_bytes(simulated(0, 3, seed=5))
    (tmp_path / "b.jpg").write_bytes(b"no image at all")
    (tmp_path / "c.jpg").write_bytes(simulated(4, 3, seed=5))
    output = run("query", tmp_path, "--store", store, "--json")
    assert output.code == 0
    first, bad, last = (json.loads(line) for line in output.out.splitlines())
    assert bad.keys() == {"image", "error"}
    for answer in (first, last):
        assert answer["verdict"] in ("real", "fake", "unsure")
        assert answer["image"].startswith(str(tmp_path))
        for name, label in (("real", "sim_camera"), ("fake", "sim_")):
            assert all(n["source"].startswith(label) for n in answer["neighbors"][name])
            near = [n["similarity"] for n in answer["neighbors"][name]]
            assert near == sorted(near, reverse=True)
            assert {"key", "similarity", "source", "category", "path"} <= answer["neighbors"][name][0].keys()


def test_query_of_bad_files_only_exits_with_1(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "b.jpg").write_bytes(b"")
    output = run("query", tmp_path / "b.jpg", "--store", store)
    assert output.code == 1
    assert "empty" in output.err


def test_query_csv_can_be_parsed(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a, b.jpg").write_bytes(simulated(0, 3, seed=5))
    output = run("query", tmp_path / "a, b.jpg", "--store", store, "--csv")
    [row] = csv.DictReader(io.StringIO(output.out))
    assert row["image"].endswith("a, b.jpg")
    assert row["verdict"] in ("real", "fake", "unsure")


def test_contact_sheet_falls_back_to_thumbnails(  # type: ignore[no-untyped-def]
    sample: list[Path],
    store: Path,
    tmp_path: Path,
    run,
) -> None:
    (tmp_path / "a.jpg").write_bytes(simulated(4, 3, seed=5))
    sheets = [tmp_path / "with.png", tmp_path / "without.png"]
    assert run("query", tmp_path / "a.jpg", "--store", store, "--sheet", sheets[0]).code == 0
    moved = sample[0].parent.rename(tmp_path / "moved")
    try:
        assert run("query", tmp_path / "a.jpg", "--store", store, "--sheet", sheets[1]).code == 0
    finally:
        moved.rename(sample[0].parent)
    one, two = (Image.open(sheet).convert("L") for sheet in sheets)
    assert one.size == two.size
    difference = [abs(a - b) for a, b in zip(one.tobytes(), two.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 8  # the same images, a little softer


def test_contact_sheet_format_follows_its_suffix(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jpg").write_bytes(simulated(4, 3, seed=5))
    for name, kind in (("s.jpg", "JPEG"), ("s.png", "PNG"), ("s", "PNG")):
        run("query", tmp_path / "a.jpg", "--store", store, "--sheet", tmp_path / name)
        with Image.open(tmp_path / name) as sheet:
            assert sheet.format == kind
    assert run("query", tmp_path / "a.jpg", "--store", store, "--sheet", tmp_path).code == 2


def test_query_panel_shows_verdict_and_neighbors(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jpg").write_bytes(simulated(4, 3, seed=5))
    output = run("query", tmp_path / "a.jpg", "--store", store)
    assert any(word in output.out for word in ("● REAL", "▲ FAKE", "◆ UNSURE"))
    assert "% likely fake" in output.out
    assert "nearest real" in output.out
    assert "sim_camera" in output.out
    assert scale(0.0).index("●") == scale(0.1).index("●")


def test_names_are_printed_without_markup(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    name = "[final] :cat:.jpg"
    (tmp_path / name).write_bytes(simulated(4, 3, seed=5))
    assert f"/{name}" in run("query", tmp_path / name, "--store", store).out
    assert run("bank", "add", tmp_path, "--source", "gan[red]", "--label", "fake", "--store", store).code == 0
    (tmp_path / name).write_bytes(simulated(4, 3, seed=5) + b" ")  # another file of the same image
    assert "gan[red]" in run("query", tmp_path / name, "--store", store).out
    assert "gan[red]" in run("store", "info", "--store", store).out
    assert run("bank", "remove", "gan[red]", "--store", store).out == "1 row of gan[red] removed\n"


def test_long_path_is_shortened_at_its_start(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / f"{'x' * 200}.jpg").write_bytes(simulated(4, 3, seed=5))
    [title, *_] = run("query", tmp_path / f"{'x' * 200}.jpg", "--store", store).out.splitlines()
    assert "…xxx" in title and "xxx.jpg" in title


def test_query_prints_counts_and_caveat(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(simulated(4, i, seed=5))
    (tmp_path / "b.jpg").write_bytes(b"no image at all")
    output = run("query", tmp_path, "--store", store)
    assert "3 images: " in output.err and "1 not judged" in output.err
    assert CAVEAT in output.err and CAVEAT not in output.out
    assert CAVEAT not in run("query", tmp_path, "--store", store, "--json").err


def test_report_is_self_contained(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    output = run("report", "--store", store, "--out", tmp_path / "r.html", "--json")
    assert output.code == 0
    text = (tmp_path / "r.html").read_text()
    assert "http" not in text.replace("http://www.w3.org", "")
    order = [
        "Unseen generators and sources",
        "Head and baselines",
        "Reliability of verdicts",
        "Measures",
        "Data and training",
    ]
    places = [text.index(f"<h2>{section}</h2>") for section in order]
    assert places == sorted(places)
    assert CAVEAT in text and "sources never seen" in text
    assert {Path(path).suffix for path in output.json["figures"]} == {".png", ".svg", ".csv"}
    assert all(Path(path).stat().st_size for path in output.json["figures"])


def test_report_may_have_no_suffix(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "new folder" / "results"
    assert run("report", "--store", store, "--out", page).code == 0
    assert page.read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert list((tmp_path / "new folder" / "results-figures").glob("*.png"))
    (tmp_path / "folder").mkdir()
    assert run("report", "--store", store, "--out", tmp_path / "folder").code == 2


URLS = ["s3://bucket/store", "gs://bucket", "https://host/store", "file:///srv/store", "S3:/bucket/store"]
STORE_COMMANDS = ["store info", "store verify", "store repair", "store compact", "store index", "train --from-store"]
STORE_COMMANDS += ["report", "query a.jpg", "evaluate", "serve", "bank remove x", "store export --to x", "index p"]


@pytest.mark.parametrize("url", URLS)
def test_url_is_no_store(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").mkdir()
    for command in STORE_COMMANDS:
        ran = run(*command.split(), "--store", url)
        assert (ran.code, "cannot be at a URL" in ran.err) == (1, True), command
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("name", ["C:/data", "a:b", "with space", "s3", "weird%20name", "\\\\server\\share"])
def test_odd_folder_names_are_no_urls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(Store.create(Path(name), Space("x", "a" * 64, 2))) == 0
    assert (tmp_path / name / "snapshots").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "--folders", "nowhere", "--store", "s"], "does not exist"),
        (["index", "--folders", "empty", "--encoder", "plain", "--store", "s"], "holds no images"),
        (["index", "--folders", "columns/metadata.csv", "--store", "s"], "name that folder"),
        (["index", "--folders", "a.jpg", "--store", "s"], "is a single image"),
        (["index", "--folders", "columns", "--encoder", "plain", "--store", "s"], "no column target"),
        (["index", "--folders", "empty", "--encoder", "./nothing", "--store", "s"], "cannot be loaded"),
        (["train", "--from-store", "--store", "nowhere"], "there is no store"),
        (["query", "nowhere.jpg", "--store", "nowhere"], "there is no store"),
        (["report", "--store", "nowhere"], "there is no store"),
    ],
)
def test_error_is_explained_and_exits_with_1(  # type: ignore[no-untyped-def]
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "columns").mkdir()
    (tmp_path / "columns/metadata.csv").write_text("filename,image_path\na,a\n")
    (tmp_path / "a.jpg").touch()
    output = run(*arguments)
    assert output.code == 1
    assert message in output.err
    assert output.out == ""
    assert "Traceback" not in output.err


def test_encoder_of_another_space_is_an_error(store: Path, sample: list[Path], tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    from clipfake.simulated.standin_encoder import build_standin

    other = build_standin(tmp_path)
    for command in (["index", "--folders", sample[0]], ["query", next(sample[0].rglob("*.jpg"))]):
        output = run(*command, "--store", store, "--encoder", other)
        assert output.code == 1
        assert "cannot be compared" in output.err


def test_wrong_usage_exits_with_2(run) -> None:  # type: ignore[no-untyped-def]
    assert run("index").code == 2
    assert run("nonsense").code == 2
    assert run("query", "x.jpg", "--prior", "7").code == 2
    assert run("evaluate", "--replay", "nowhere.csv").code == 2


def test_training_choices_match_the_library(run) -> None:  # type: ignore[no-untyped-def]
    from typing import get_args

    from clipfake.commands import choices
    from clipfake.detector import head, projection, split
    from clipfake.detector.evaluation import leave_one_out
    from clipfake.detector.imported import head_format
    from clipfake.detector.training import train, triplet

    values = {choices.ProjectionKind: projection.TRIPLET_KINDS, choices.SplitRecipe: split.RECIPES}
    values |= {getattr(choices, name): get_args(getattr(triplet, name)) for name in ("Anchor", "Match", "Mining")}
    for enumeration, accepted in values.items():
        assert {member.value for member in enumeration} == set(accepted)
    assert {member.value for member in choices.ClassifierName} == {*head.TITLES, train.AUTO}
    assert {*leave_one_out.FITTED} == {"ridge", "knn", *head.TITLES}
    assert {member.value for member in choices.HeadFormatName} == {*head_format.FORMATS, "rine"}
    output = run("train", "--kind", "circular")
    assert output.code == 2 and "triple" in output.err
    output = run("train", "--kind", "mlp", "--classifier", "rbf-svm")
    assert output.code == 1 and "belongs to the classifier triplet-svm" in output.err


def test_training_needs_both_classes(sample: list[Path], tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    assert run("index", "--folders", sample[0], "--encoder", "plain", "--store", tmp_path / "s", "--json").code == 0
    output = run("train", "--from-store", "--store", tmp_path / "s")
    assert output.code == 1
    assert "no fake ones" in output.err
    again = run("index", "--folders", sample[0], "--store", tmp_path / "s")
    assert "next: index fake images" in again.err  # rather than to train


def test_suggested_command_can_be_pasted(sample: list[Path], store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    spaced = tmp_path / "my störe"
    shutil.copytree(store, spaced)
    for command in (["index", "--folders", *sample], ["train", "--epochs", 1, "--head", "second"]):
        output = run(*command, "--store", spaced).err.splitlines()[-1]
        [program, *words] = shlex.split(output.removeprefix("next: "))
        assert program == "clipfake" and words[words.index("--store") + 1] == str(spaced)
    assert words[-2:] == ["--head", "second"]


def test_index_reports_unlabelled_images(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "mine" / "reall"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(simulated(0, 3, seed=5))
    command = ("index", "--folders", tmp_path / "mine", "--encoder", "plain", "--store", tmp_path / "s")
    for output in (run(*command, "--dry-run"), run(*command)):
        assert "1 image without a label: mine" in output.out and "metadata.csv" in output.out


def test_skipped_images_are_grouped_by_reason(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    rows = "".join(f"{i}.jpg,{i % 2}\n" for i in range(100))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "metadata.csv").write_text(f"image_path,target\n{rows}zz.jpg,1\nzz.png,0\n")
    (tmp_path / "set" / "zz.jpg").write_bytes(b"")
    (tmp_path / "set" / "zz.png").write_bytes(simulated(0, 3, seed=5))
    output = run("index", "--folders", tmp_path / "set", "--encoder", "plain", "--store", tmp_path / "s")
    assert "100 images: cannot be read: No such file" in output.out and "zz.jpg: empty" in output.out


def test_shares_as_percent_or_fraction(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jpg").write_bytes(simulated(0, 3, seed=5))
    command = ("query", tmp_path / "a.jpg", "--store", store, "--json")
    answer = run(*command, "--error", "20%", "--prior", "1%").json
    assert (answer["error_rate"], answer["prior"]) == (0.2, 0.01)
    assert answer == run(*command, "--error", "0.2", "--prior", "0.01").json
    assert run(*command, "--error", "60%").code == run(*command, "--error", "little").code == 2


def test_invalid_options_fail_before_any_work(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    far = run("query", "https://example.org/a.jpg", "--store", store)
    assert far.code == 1 and "save the image" in far.err
    gif = run("query", "a.jpg", "--store", store, "--sheet", tmp_path / "s.gif")
    assert gif.code == 2 and ".png" in gif.err


def test_bank_add_and_remove(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "new").mkdir()
    for i in range(4):
        (tmp_path / "new" / f"{i}.jpg").write_bytes(simulated(5, 50 + i, seed=9))
    (tmp_path / "query.jpg").write_bytes(simulated(5, 50, seed=9) + b" ")  # another file of the same image

    def answer() -> dict:  # type: ignore[type-arg]
        return run("query", tmp_path / "query.jpg", "--store", store, "--json").json  # type: ignore[no-any-return]

    before = answer()
    added = run("bank", "add", tmp_path / "new", "--source", "newest", "--label", "fake", "--store", store, "--json")
    assert added.json["added"] == 4
    [copy] = answer()["stored"]
    assert (copy["source"], copy["generator"], copy["match"]) == ("newest", "newest", "picture")
    assert answer()["verdict"] == "fake"
    assert run("bank", "remove", "newest", "--store", store, "--json").json["removed"] == 4
    assert answer() == before
    assert run("bank", "remove", "newest", "--store", store).code == 1


def test_store_info_snapshots_and_undo(store: Path, run) -> None:  # type: ignore[no-untyped-def]
    answer = run("store", "info", "--store", store, "--json").json
    assert answer["rows"] == COUNT * len(SOURCES)
    assert "default" in [head["name"] for head in answer["heads"]]
    assert "sim_nearest" in run("store", "info", "--store", store).out
    numbers = [s["number"] for s in run("store", "snapshots", "--store", store, "--json").json["snapshots"]]
    empty = run("store", "undo", numbers[0], "--store", store, "--json").json
    assert empty["rows"] == 0
    again = run("store", "undo", numbers[-1], "--store", store, "--json").json
    assert again["rows"] == COUNT * len(SOURCES)


def test_stats_count_targets_and_labels(sample: list[Path], run) -> None:  # type: ignore[no-untyped-def]
    answer = run("index", "--folders", *sample, "--stats", "--json").json
    rows = {row["source"]: row for row in answer["distribution"]}
    assert rows["sim_stacked"]["targets"] == {"6": COUNT}
    assert rows["sim_stacked"]["labels"]["fake"] == COUNT


def test_query_reads_archives_and_standard_input(  # type: ignore[no-untyped-def]
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "inbox.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.jpg", simulated(1, i, seed=4))
    lines = run("query", tmp_path / "inbox.zip", "nowhere.jpg", "--store", store, "--json").out.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [("verdict" in answer, "error" in answer) for answer in answers] == [(True, False)] * 3 + [(False, True)]
    monkeypatch.setattr("sys.stdin", type("", (), {"buffer": io.BytesIO(simulated(1, 0, seed=4))}))
    assert run("query", "-", "--store", store, "--json").json["score"] == answers[0]["score"]


def test_check_stability_can_make_an_answer_unsure(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.jpg").write_bytes(simulated(4, 3, seed=5))
    answer = run("query", tmp_path / "a.jpg", "--store", store, "--steady", "--json").json
    names = ["after JPEG quality 60", "after WebP quality 50", "at half its size", "after a blur of 1%"]
    assert [view["what"] for view in answer["views"]] == names
    if any(view["verdict"] != answer["verdict"] for view in answer["views"]):
        assert answer["verdict"] == "unsure"


def test_progress_as_json_lines_and_prometheus(sample: list[Path], tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    log, figures = tmp_path / "log.jsonl", tmp_path / "clipfake.prom"
    result = ["--log-json", log, "--prometheus", figures]
    assert run("index", "--folders", sample[0], "--encoder", "plain", "--store", tmp_path / "s", *result).code == 0
    assert json.loads(log.read_text().splitlines()[-1])["added"] == COUNT
    assert f'clipfake_index_images_total{{outcome="added"}} {COUNT}' in figures.read_text()
    ended = run("index", "--folders", sample[0], "--store", tmp_path / "s", "--log-json", tmp_path / "no/where")
    assert ended.code == 1 and "cannot be written" in ended.err


def test_verify_repair_and_compact(sample: list[Path], tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    store_option = ["--store", tmp_path / "s"]
    for folder in sample[:2]:
        run("index", "--folders", folder, "--encoder", "plain", *store_option)
    assert run("store", "verify", *store_option, "--json").json["sound"]
    assert run("store", "compact", *store_option, "--grace", 0, "--json").json["shards"] == [2, 1]
    [shard] = (tmp_path / "s/shards").glob("*.h5")
    content = bytearray(shard.read_bytes())
    content[-COUNT * 384 :: 7] = bytes(len(content[-COUNT * 384 :: 7]))
    shard.write_bytes(content)
    damaged = run("store", "verify", *store_option)
    assert damaged.code == 1 and shard.name in damaged.out
    assert run("store", "repair", *store_option, "--json").json["actions"]
    assert run("store", "verify", *store_option).code == 0


@pytest.mark.parametrize("width", [50, 80, 200])
def test_wide_table_never_splits_a_number(width: int) -> None:
    from clipfake.show.tables import WrappedTable
    from rich.console import Console

    reals = ["afhq", "celebahq", "coco", "ffhq", "imagenet", "landscape", "lsun", "metfaces"]
    rows = [[name, *(i / 1000 for i in range(500, 508))] for name in ("big_gan", "diffusion_projected_gan")]
    screen = io.StringIO()
    Console(width=width, file=screen).print(WrappedTable("AUC", ["", *reals], rows))
    words = screen.getvalue().split()
    assert all(words.count(f"{i / 1000:.3f}") == len(rows) for i in range(500, 508))
    assert all(real in words for real in reals)
    assert max(map(len, screen.getvalue().splitlines())) <= width


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_wrap_and_transient_ones_disappear(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipfake.commands.terminal import print_message, transient_message

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stderr", Screen())
    with transient_message("loading"):
        pass
    print_message(CAVEAT)
    queries = "there is no store at s; make one with `clipfake index --folders ...` and ask again"
    print_message(queries)
    command = "next: clipfake query IMAGE --store a/long/path/to/a/store"
    print_message(command)
    passed, result = sys.stderr.getvalue().split("\x1b[2K")  # type: ignore[union-attr]
    assert passed == "loading\r"  # followed by the code that clears the line
    *lines, last = result.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert "`clipfake index --folders ...` and ask" in lines
    assert " ".join(lines) == f"{CAVEAT} {queries}"
    assert last == command  # whole, so that it can be pasted


@pytest.mark.parametrize("engine", ["spark", ""])
def test_unknown_engine_is_wrong_usage(engine: str, sample: list[Path], tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    ended = run("index", "--folders", sample[0], "--store", tmp_path / "s", "--engine", engine)
    assert ended.code == 2 and "ray" in ended.err


def test_evaluate_leaves_sources_out(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    output = run("evaluate", "--store", store, "--json", "--out", tmp_path / "atlas")
    assert {"random_auc", "mean_auc", "optimism", "cells"} <= output.json.keys()
    assert output.json["heads"].keys() == {"ridge", "knn"}
    assert (tmp_path / "atlas/leave_one_out.csv").read_text().count("\n") == len(output.json["cells"]) + 1
    assert (tmp_path / "atlas/leave_one_out.png").stat().st_size > 1000
    assert run("evaluate", "--store", store, "--leave-one-out", "sink").code == 2


def test_commands_after_index_open_no_image(sample: list[Path], store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    """Training, evaluation, report and export read the store only: the images have been moved away."""
    images, away = sample[0].parent, tmp_path / "away"
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    images.rename(away)
    try:
        for command in (
            ["train", "--from-store", "--kind", "mlp", "--epochs", 2, "--head", "again"],
            ["evaluate"],
            ["report", "--head", "again", "--out", tmp_path / "page.html"],
            ["store", "duplicates"],
            ["store", "export", "--to", tmp_path / "out", "--layout", "numpy"],
        ):
            assert run(*command, "--store", copy, "--json").code == 0, command
    finally:
        away.rename(images)


def test_index_checks_the_store_before_loading_the_encoder(tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "images").mkdir()
    command = ("index", "--folders", tmp_path / "images", "--encoder", tmp_path / "nowhere", "--store")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("hello")
    ended = run(*command, tmp_path / "other")
    assert (ended.code, "is not a store" in ended.err) == (1, True)
    taken = Store.create(tmp_path / "s", Space("plain", "0" * 64, 3))
    with taken.writer():
        ended = run(*command, taken.folder)
    assert (ended.code, "is being written by" in ended.err) == (1, True)


def test_several_processes_index_the_same_rows(sample: list[Path], store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    answer = run(
        "index", "--folders", *sample, "--encoder", "plain", "--store", tmp_path / "s", "--processes", 2, "--json"
    ).json
    assert (answer["added"], len(answer["workers"]), answer["interrupted"]) == (7 * COUNT, 2, False)
    keys = [Store.open(folder).snapshot().column("keys").tolist() for folder in (tmp_path / "s", store)]
    assert sorted(keys[0]) == sorted(keys[1])


class Full(io.TextIOWrapper):
    """A standard output on which every write fails."""

    def __init__(self, why: OSError, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.why = why

    def write(self, text: str) -> int:
        if text:
            raise self.why
        return 0


@pytest.mark.parametrize("command", [("store", "info"), ("store", "info", "--json")], ids=["table", "json"])
def test_full_disk_is_an_error_and_closed_pipe_is_not(  # type: ignore[no-untyped-def]
    command: tuple[str, ...],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    monkeypatch.setattr("sys.stdout", Full(OSError(errno.ENOSPC, "No space left on device")))
    full = run(*command, "--store", store)
    assert (full.code, full.err) == (
        1,
        "clipfake: cannot write to standard output (No space left on device); free space or redirect it elsewhere\n",
    )
    monkeypatch.setattr("sys.stdout", Full(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert (run(*command, "--store", store).code, full.out) == (0, "")


def test_unencodable_characters_raise_no_error(  # type: ignore[no-untyped-def]
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run,
) -> None:
    names = ("großes.jpg", "bad\udcff.jpg")  # the second is a file name whose bytes are not UTF-8
    for name in names:
        (tmp_path / name).write_bytes(simulated(0, 3, seed=5))
    command = ("query", *(tmp_path / name for name in names), "--store", store)
    for encoding in ("ascii", "latin-1", "utf-8"):
        for how in ((), ("--csv",), ("--json",)):
            stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
            monkeypatch.setattr("sys.stdout", stdout)
            assert run(*command, *how).code == 0
            result = stdout.buffer.getvalue().decode(encoding)
            assert result
            if how == ("--json",):
                assert [Path(json.loads(line)["image"]).name for line in result.splitlines()] == list(names)


def test_training_checks_the_head_folder_first(store: Path, monkeypatch: pytest.MonkeyPatch, run) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr("clipfake.detector.training.train.train", None)  # would end in a TypeError
    output = run("train", "--store", store)
    assert output.code == 1 and f"cannot write to {store / 'heads' / 'default'}" in output.err


def test_unknown_source_or_category_is_an_error(store: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    for command in (("export", "--to", tmp_path / "out"), ("duplicates",)):
        for option in ("--source", "--category"):
            output = run("store", *command, option, "nobody", "--store", store)
            assert (output.code, "nobody; check its spelling" in output.err) == (1, True)
    assert not (tmp_path / "out").exists()
