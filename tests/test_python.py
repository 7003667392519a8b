"""docs/PYTHON.md does what it says: its code is run from top to bottom, with the plain encoder instead of CLIP."""

import re
from pathlib import Path
from typing import Any

import pytest
from clipfake.store.store import Store
from conftest import SOURCES, drawn

PAGE = (Path(__file__).parent.parent / "docs/PYTHON.md").read_text(encoding="utf-8")
CLIP = "openai/clip-vit-base-patch32"


def test_the_code_on_the_page_indexes_trains_judges_and_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, label in SOURCES.items():
        folder = tmp_path / "data" / ("fake" if label else "real") / source
        folder.mkdir(parents=True)
        for number in range(16):
            (folder / f"{number}.png").write_bytes(drawn(source, number))
    (tmp_path / "data/real/broken.png").write_bytes(b"no image")
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/asked.png").write_bytes(drawn("gan_a", 99))
    (tmp_path / "inbox/broken.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    made, asked, searched = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert CLIP in made
    told: dict[str, Any] = {}
    exec(made.replace(CLIP, "plain"), told)
    assert len(Store.open("mystore").snapshot()) == told["report"].added == 80
    assert [key for key, _ in told["report"].skipped] == ["real/broken.png"]
    capsys.readouterr()
    exec(asked, {})
    printed = capsys.readouterr().out
    assert re.search(r"^asked.png (real|fake|unsure) ", printed, re.M)
    assert "inbox/broken.png cannot be judged" in printed
    exec(searched, found := {})
    labels = found["snapshot"].column("labels")[found["found"].rows]
    assert labels.shape == (1, 9) and (labels == 1).all()
