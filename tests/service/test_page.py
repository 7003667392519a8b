"""The page in a real browser, with the real service and the toy store."""

import io
import json
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.patches.patch_map import PatchMap
from clipfake.show.phrasing import CAVEAT, describe_map, describe_ratio, percent
from clipfake.store.records import Block, Rows
from conftest import SOURCES, Toy, draw_image
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

expect = sync_api.expect
Open = Callable[..., Any]  # (address, options of the browser's context) -> page
PIXELS = """canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v > 0)"""
# widths of images, after all of them are decoded
SIZES = "images => Promise.all(images.map(image => image.decode().then(() => image.naturalWidth)))"


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Run an app on a free port; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))  # connections made before the server is up are queued
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def address(toy: Toy) -> Iterator[str]:
    with served(toy.app(notice="The encoder is <b>a toy</b>.")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open pages, and check in every test that no request leaves the host and the console has no error."""
    contexts, errors = [], []

    def visiting(url: str, script: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda it: None if it.url.startswith((url, "blob:", "data:")) else errors.append(it.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        # failed requests are tested by status; any other message is an error, also one of the content security policy
        page.on("console", lambda it: None if "Failed to load resource" in it.text else errors.append(it.text))
        if script:
            page.add_init_script(script)
        page.goto(url)
        return page

    yield visiting
    for context in contexts:
        context.close()
    assert errors == []


def file(name: str, content: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": content}


FAKE = file("suspicious.png", draw_image("gan_a", 77))
REAL = file("holiday.png", draw_image("camera_a", 77))
BAD = file("<img src=x onerror=alert(1)>.txt", b"hello world", "text/plain")


def give(page: Any, *files: dict[str, Any]) -> None:
    """Choose files, and wait until all are done."""
    expect(page.locator("#choose")).to_be_enabled()
    page.set_input_files("#files", list(files))
    expect(page.locator(".card")).to_have_count(len(files))
    expect(page.locator(".card[data-state=waiting]")).to_have_count(0)


def answer_of(address: str, content: bytes) -> Any:
    """The service's own answer for an image."""
    request = urllib.request.Request(f"{address}/v1/query", content, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["answers"][0]


@pytest.mark.parametrize("image", [FAKE, REAL], ids=["fake", "real"])
def test_card_shows_verdict_and_evidence(visit: Open, address: str, image: dict[str, Any]) -> None:
    page, answer = visit(address), answer_of(address, image["buffer"])
    give(page, image)
    card = page.locator(".card")
    expect(card).to_have_attribute("data-state", answer["verdict"])
    expect(card.locator(".word")).to_have_text(answer["verdict"].capitalize())
    expect(card.locator(".by")).to_contain_text(answer["generator"])
    # the wording of the terminal
    numbers = [*answer["signals"].values(), answer["score"]]
    expect(card.locator(".bar-words")).to_contain_text([describe_ratio(number) for number in numbers])
    bars = [float(text.replace("−", "-")) for text in card.locator(".bar-words b").all_inner_texts()]
    assert bars == pytest.approx(numbers, abs=0.0051)
    expect(card.locator(".chance-number")).to_have_text(f"{percent(answer['probability'])} likely fake")
    expect(page.locator("#results")).to_contain_text(CAVEAT)
    expect(card.locator(".made")).to_be_visible(visible=answer["verdict"] == "fake")
    for why in answer["reasons"]:
        expect(card.locator(".reasons")).to_contain_text(why[1:])
    for kind, neighbors in answer["neighbors"].items():
        nearest = card.locator(f".nearest-{kind}")
        expect(nearest).to_contain_text(f"similarity {neighbors[0]['similarity']:.3f}")
        expect(nearest).to_contain_text(neighbors[0]["source"])
        expect(card.locator(f".strip-{kind} li")).to_have_count(len(neighbors) - 1)
    shown = card.locator("img")
    expect(shown).to_have_count(2 + sum(map(len, answer["neighbors"].values())))  # and the queried image twice
    assert all(shown.evaluate_all(SIZES))


def test_card_names_stored_copies(visit: Open, address: str) -> None:
    page, content = visit(address), draw_image("gan_a", 7)
    answer = answer_of(address, content)
    give(page, file("mine.png", content))
    expect(page.locator(".card .known")).to_have_text(f"{answer['copy']}.")
    expect(page.locator(".card .meaning")).to_contain_text("The score and the evidence are without the copies.")
    assert answer["copy"].startswith(f"A copy of a known fake, {answer['stored'][0]['key']}")


def test_nearest_images_come_before_numbers(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE)
    order = ["The nearest known images", "Why", "What would change", "What the two signals say", "Its position"]
    text = page.locator(".card").inner_text()
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_images_are_not_cropped(visit: Open, address: str) -> None:
    page = visit(address)
    wide, out = Image.open(io.BytesIO(FAKE["buffer"])).resize((300, 60)), io.BytesIO()
    wide.save(out, "PNG")
    give(page, file("wide.png", out.getvalue()))
    expect(page.locator(".nearest-real img")).to_have_count(1)
    assert set(page.locator("img").evaluate_all("all => all.map(it => getComputedStyle(it).objectFit)")) == {"contain"}


def test_map_is_drawn_and_described(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE)
    canvas = page.locator("canvas")
    expect(canvas).to_have_attribute("data-drawn", str(60 * len(SOURCES)))
    assert canvas.evaluate(PIXELS)
    expect(page.locator(".map-words")).to_contain_text("known images around it")
    expect(canvas).to_have_attribute("aria-label", f"Map of 300 known images. {page.inner_text('.map-words')}")


@pytest.mark.parametrize("shown", [True, False])
def test_map_of_patches_is_drawn_only_if_it_may_be(visit: Open, address: str, shown: bool) -> None:
    page = visit(address)
    values = tuple(tuple(float(x - 2 + y) for x in range(4)) for y in range(3)) if shown else ()
    patch_map = PatchMap(3, 4, values, 0.95, "A hint where to look.", (0.25, 0.0, 0.75, 1.0))

    def add_map(route: Any) -> None:
        response = route.fetch()
        content = response.json()
        assert content["answers"][0]["map"] is None  # the toy encoder has no patches
        content["answers"][0]["map"] = patch_map.to_dict()
        route.fulfill(response=response, json=content)

    page.route("**/v1/query*", add_map)
    give(page, FAKE)
    where = page.locator(".where")
    expect(where.locator(".where-note")).to_have_text("A hint where to look.")
    expect(where.locator("rect")).to_have_count(12 if shown else 0)
    expect(where.locator(".where-picture")).to_be_visible(visible=shown)
    if not shown:
        return
    words = f"{describe_map(patch_map)}."  # the wording of the terminal and of the contact sheet
    expect(where.locator(".where-words")).to_have_text(words)
    expect(where.get_by_role("img", name=f"Map of the patches of {FAKE['name']}. {words}")).to_be_visible()
    picture, patches = (where.locator(part).bounding_box() for part in ("img", "svg.patches"))
    assert patches["x"] - picture["x"] == pytest.approx(picture["width"] / 4, abs=1)
    assert patches["width"] == pytest.approx(picture["width"] / 2, abs=1)
    assert patches["height"] == pytest.approx(picture["height"], abs=1)
    signs = where.locator("svg.patches use").evaluate_all("all => all.map(it => it.getAttribute('href'))")
    assert set(signs) == {"#shape-fake", "#shape-real"}


def test_no_map_of_patches_without_patches(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE)
    expect(page.locator(".where")).to_be_hidden()


def test_names_are_shown_escaped_and_saved_as_they_are(visit: Open, toy: Toy, tmp_path: Path) -> None:
    hostile = "\x1b[2J\u202egpj.\u200b"
    store = toy.copy(tmp_path / "store")
    with store.writer("hostile") as writer:
        snapshot = writer.snapshot
        chosen = np.flatnonzero(snapshot.column("sources") == "gan_a")
        rows = Rows.make(
            keys=[f"{hostile}/{key}" for key in snapshot.column("keys")[chosen].tolist()],
            labels=snapshot.column("labels")[chosen],
            sources=[f"gan_b{hostile}"] * len(chosen),
            generators=[f"gan_b{hostile}"] * len(chosen),
            digests=snapshot.column("digests")[chosen],
        )
        writer.append(Block(snapshot.space, rows, snapshot.vectors(chosen), (b"",) * len(chosen)))
    with served(toy.app(store=store)) as url:
        page = visit(url)
        give(page, file(f"mine{hostile}.png", draw_image("gan_a", 7)), file(f"bad{hostile}.png", b"no"))
        expect(page.locator(".card .name").first).to_have_text(r"mine\x1b[2J\u202egpj.\u200b.png")
        page.locator(".toggle").first.click() if page.locator(".evidence").first.is_hidden() else None
        everything = page.content()
        assert r"gan_b\x1b[2J" in everything
        with page.expect_download() as download:
            page.locator("#save").click()
    assert not set(hostile) & {"\x1b", "\u202e", "\u200b"} & set(everything)
    saved = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert saved[0]["image"] == f"mine{hostile}.png"


def test_notice_is_shown_as_text(visit: Open, address: str) -> None:
    expect(visit(address).locator("#notice")).to_contain_text("The encoder is <b>a toy</b>.")


def test_text_file_is_refused_and_its_name_escaped(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, BAD)
    card = page.locator(".card")
    expect(card).to_have_attribute("data-state", "refused")
    expect(card.locator(".meaning")).to_have_text("Not an image (11 bytes).")
    expect(card.locator(".name")).to_have_text(BAD["name"])
    expect(card.locator(".name *")).to_have_count(0)
    expect(page.locator("#said")).to_contain_text("not judged")


def test_bad_image_does_not_block_the_others(visit: Open, address: str) -> None:
    page = visit(address)
    images = [FAKE, BAD, REAL, file("cut.png", REAL["buffer"][:300])]
    give(page, *images)
    expect(page.locator(".name")).to_have_text([image["name"] for image in images])
    states = [card.get_attribute("data-state") for card in page.locator(".card").all()]
    verdicts = [answer_of(address, image["buffer"])["verdict"] for image in (FAKE, REAL)]
    assert states == [verdicts[0], "refused", verdicts[1], "refused"]
    expect(page.locator("#summary")).to_contain_text("4 images")
    expect(page.locator("#summary")).to_contain_text("2 not judged")
    page.locator(".toggle").nth(0).click()  # for several images, the evidence is collapsed
    expect(page.locator(".nearest-real img")).to_have_count(1)


def test_images_can_be_dropped_and_pasted(visit: Open, address: str) -> None:
    page = visit(address)
    expect(page.locator("#choose")).to_be_enabled()
    hand = """([how, name, bytes]) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
        const event = how === 'drop' ? new DragEvent('drop', {dataTransfer: carried, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: carried, bubbles: true, cancelable: true});
        document.getElementById('drop').dispatchEvent(event);
    }"""
    for how, image in (("drop", FAKE), ("paste", REAL)):
        page.evaluate(hand, [how, image["name"], list(image["buffer"])])
    expect(page.locator(".name")).to_have_text([REAL["name"], FAKE["name"]])  # the newest first
    expect(page.locator(".card[data-state=waiting]")).to_have_count(0)
    expect(page.locator(".card[data-state=refused]")).to_have_count(0)


def test_untrained_store_shows_what_to_do_until_trained(visit: Open, toy: Toy, tmp_path: Path) -> None:
    from clipfake.store.store import Store

    shutil.copytree(toy.store.folder, tmp_path / "store", ignore=shutil.ignore_patterns("heads"))
    with served(toy.app(store=Store.open(tmp_path / "store"))) as address:
        page = visit(address)
        expect(page.locator("#unready")).to_contain_text("clipfake train")
        expect(page.locator("#choose")).to_be_disabled()
        shutil.copytree(toy.store.folder / "heads", tmp_path / "store" / "heads")
        page.get_by_role("button", name="Look again").click()
        expect(page.locator("#unready")).to_be_hidden()
        give(page, FAKE)


def test_empty_store_shows_what_to_do(visit: Open, toy: Toy, tmp_path: Path) -> None:
    from clipfake.store.store import Store

    with served(toy.app(store=Store.create(tmp_path / "store", toy.encoder.space))) as address:
        page = visit(address)
        expect(page.locator("#unready")).to_contain_text("clipfake index")
        expect(page.locator("#bank-line")).to_have_text("No images are known yet")
        page.set_input_files("#files", [FAKE])
        expect(page.locator(".card")).to_have_count(0)


FAST_TIMERS = "const set = setTimeout; setTimeout = (f, ms) => set(f, ms / 10);"  # timers run ten times as fast
CUT = """const asks = fetch; let cut = false; window.fetch = async (at, how) => {
    if (cut || !String(at).startsWith('/v1/query')) return asks(at, how);
    cut = true;
    return new Response(new ReadableStream({start: (stream) => stream.error(new TypeError('network error'))}));
};"""  # the first response ends after its headers
REFUSALS = {
    "busy": ("busy", 503, "256 images are waiting already; try again in 7 s"),
    "engine": ("engine-slow", 504, "the search back end of this service did not respond in time; try again in 7 s"),
}


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("busy", "The service is busy: 256 images are waiting already. Trying again in 7 seconds"),
        ("engine", "The search back end of this service did not respond in time. Trying again in 7 seconds"),
        ("gone", "The service does not answer. Is it still running? Trying again in"),
        ("cut", "The service does not answer. Is it still running? Trying again in"),
    ],
)
def test_page_retries_a_busy_or_missing_service(visit: Open, address: str, trouble: str, message: str) -> None:
    page = visit(address, script=FAST_TIMERS + (CUT if trouble == "cut" else ""))

    def refuse(route: Any) -> None:
        if trouble == "gone":
            route.abort("connectionrefused")
        else:
            kind, status, detail = REFUSALS[trouble]
            body = json.dumps({"type": f"urn:clipfake:problem:{kind}", "detail": detail})
            route.fulfill(status=status, body=body, headers={"Retry-After": "7"})

    if trouble != "cut":
        page.route("**/v1/query*", refuse, times=1)
    expect(page.locator("#choose")).to_be_enabled()
    page.set_input_files("#files", [FAKE])
    expect(page.locator("#trouble")).to_contain_text(message)
    expect(page.locator(".card")).to_have_attribute("data-state", answer_of(address, FAKE["buffer"])["verdict"])
    expect(page.locator("#trouble")).to_be_hidden()


def test_page_scrolls_to_new_results(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.set_input_files("#files", [REAL])
    expect(page.locator("#summary")).to_be_in_viewport()
    expect(page.locator(".card").first.locator(".name")).to_be_in_viewport()
    expect(page.locator(".card[data-state=waiting]")).to_have_count(0)


@pytest.mark.parametrize("touched", [True, False])
def test_keyboard_hint_is_hidden_on_phones(visit: Open, address: str, touched: bool) -> None:
    page = visit(address, is_mobile=touched, has_touch=touched)
    expect(page.locator("#choose")).to_be_visible()
    expect(page.locator(".by-hand")).to_be_visible(visible=not touched)


def test_waiting_can_be_stopped_and_resumed(visit: Open, address: str) -> None:
    page = visit(address)
    page.route("**/v1/query*", lambda route: route.abort("connectionrefused"), times=1)
    expect(page.locator("#choose")).to_be_enabled()
    page.set_input_files("#files", [FAKE])
    expect(page.locator("#trouble")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".card")).to_have_attribute("data-state", "refused")
    expect(page.locator("#trouble")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card")).to_have_attribute("data-state", answer_of(address, FAKE["buffer"])["verdict"])


def test_waiting_image_can_be_removed(visit: Open, address: str) -> None:
    page = visit(address)
    page.route("**/v1/query*", lambda route: route.abort("connectionrefused"))
    expect(page.locator("#choose")).to_be_enabled()
    page.set_input_files("#files", [FAKE])
    expect(page.locator("#trouble")).to_be_visible()
    page.get_by_role("button", name="Remove suspicious.png").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#trouble")).to_be_hidden()
    page.unroute_all()
    give(page, REAL)
    expect(page.get_by_role("status")).to_contain_text("holiday.png: ")


def test_page_asks_for_the_token(visit: Open, toy: Toy) -> None:
    with served(toy.app(token="open sesame", public=True)) as address:
        page = visit(address)
        for token in ("guessed", "open sesame"):
            expect(page.get_by_role("dialog")).to_be_visible()
            expect(page.get_by_label("Token", exact=True)).to_be_focused()
            page.keyboard.type(token)
            page.keyboard.press("Enter")
            if token == "guessed":
                expect(page.locator("#token-wrong")).to_be_visible()
        expect(page.locator("#bank-line")).to_contain_text("300 known images")
        give(page, FAKE)
        expect(page.locator(".nearest-real img")).to_have_count(1)
        assert all(page.locator(".evidence img").evaluate_all(SIZES))
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_role("dialog")).to_be_visible()


def test_page_works_by_keyboard(visit: Open, address: str) -> None:
    page = visit(address)
    page.on("filechooser", lambda _: None)  # makes the browser intercept file choosers from the start
    expect(page.locator("#choose")).to_be_enabled()
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([FAKE])
    card = page.locator(".card")
    expect(card).to_be_focused()  # after the answer has arrived
    verdict = answer_of(address, FAKE["buffer"])["verdict"].capitalize()
    expect(page.get_by_role("status")).to_contain_text(f"suspicious.png: {verdict}")
    page.keyboard.press("Tab")
    expect(card.locator(".toggle")).to_be_focused()
    assert card.locator(".toggle").evaluate("it => getComputedStyle(it).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(card.locator(".evidence")).to_be_hidden()
    expect(card.locator(".toggle")).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove suspicious.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(card).to_have_count(0)
    expect(page.locator("#choose")).to_be_focused()


def test_assumptions_are_sent_with_the_query(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE)
    page.get_by_text("Your assumptions").click()
    page.get_by_label("Share of fakes among your images").fill("0.5")
    page.get_by_role("button", name="Judge all again").click()
    expect(page.locator(".chance-prior")).to_contain_text("if 0.5% of the queried images are fake")


def test_invalid_assumption_is_reported(visit: Open, address: str) -> None:
    page = visit(address)
    page.get_by_text("Your assumptions").click()
    page.get_by_label("Share of fakes among your images").fill("200")
    give(page, FAKE)
    expect(page.locator("#trouble")).to_contain_text("0.01 to 99.99%; 50% is used instead")
    expect(page.locator(".chance-prior")).to_contain_text("if 50% of the queried images")
    page.get_by_label("Share of fakes among your images").fill("20")
    page.get_by_role("button", name="Judge all again").click()
    expect(page.locator(".chance-prior")).to_contain_text("if 20% of the queried images")
    expect(page.locator("#trouble")).to_be_hidden()


def test_answers_are_saved_as_json_lines(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE, BAD)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save answers").click()
    content, refused = map(json.loads, saved.value.path().read_text().splitlines())
    assert content == answer_of(address, FAKE["buffer"]) | {"image": FAKE["name"]}
    assert refused == {"image": BAD["name"], "error": "not an image (11 bytes)"}


@pytest.mark.parametrize("width", [320, 760])
def test_no_overflow_on_a_narrow_screen(visit: Open, address: str, width: int) -> None:
    page = visit(address, viewport={"width": width, "height": 700})
    give(page, FAKE, file(f"{'long' * 40}.txt", b"hello world"))
    page.get_by_text("Your assumptions").click()
    expect(page.locator(".nearest-real img")).to_have_count(1)
    page.get_by_text("What this store knows").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # content that a card cuts off cannot be reached by scrolling
    beyond = """all => all.filter(it => it.checkVisibility() &&
        it.getBoundingClientRect().right > it.closest('.card').getBoundingClientRect().right).map(it => it.outerHTML)"""
    assert page.locator(".card *").evaluate_all(beyond) == []


CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => {
        const c = [r, g, b][i] / 255;
        return sum + share * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    }, 0);
    const ground = it => {
        const colour = numbers(getComputedStyle(it).backgroundColor);
        return colour[3] === 0 && it.parentElement ? ground(it.parentElement) : colour;
    };
    return [...document.querySelectorAll('body *')].filter(it => it.checkVisibility() && !it.closest('svg') &&
        [...it.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(it => {
            const [dim, bright] = [numbers(getComputedStyle(it).color), ground(it)].map(light).sort((a, b) => a - b);
            return [(bright + 0.05) / (dim + 0.05), it.textContent.trim().slice(0, 40)];
        });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast(visit: Open, address: str, scheme: str) -> None:
    page = visit(address, color_scheme=scheme)
    give(page, FAKE, REAL, BAD)
    page.get_by_text("Your assumptions").click()
    page.get_by_text("What this store knows").click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [text for contrast, text in contrasts if contrast < 4.5] == []


NAMELESS = """() => {
    const named = it => it.getAttribute('aria-label') || it.textContent.trim() || it.labels?.length ||
        document.getElementById(it.getAttribute('aria-labelledby') ?? ' ');
    const wants = 'button, input, progress, canvas, dialog, article, section[aria-labelledby]';
    const ids = [...document.querySelectorAll('[id]')].map(it => it.id);
    const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5')].filter(it => it.checkVisibility())
        .map(it => Number(it.tagName[1]));
    return {
        nameless: [...document.querySelectorAll(wants)].filter(it => !named(it)).map(it => it.outerHTML),
        unlabelled: [...document.querySelectorAll('input')].filter(it => !it.labels.length).map(it => it.id),
        mute: [...document.images].filter(it => !it.alt).map(it => it.outerHTML),
        twice: ids.filter((id, i) => ids.indexOf(id) !== i),
        skipped: levels.filter((level, i) => level > (levels[i - 1] ?? 0) + 1),
        language: document.documentElement.lang,
    };
}"""


def test_controls_have_accessible_names(visit: Open, address: str) -> None:
    page = visit(address)
    give(page, FAKE, BAD)
    expect(page.locator(".nearest-real img")).to_have_count(1)
    nothing: list[str] = []
    assert page.evaluate(NAMELESS) == {
        **dict.fromkeys(("nameless", "unlabelled", "mute", "twice", "skipped"), nothing),
        "language": "en",
    }


def test_object_urls_are_revoked(visit: Open, address: str) -> None:
    script = """window.held = new Set();
        const {createObjectURL, revokeObjectURL} = URL;
        URL.createObjectURL = blob => { const made = createObjectURL(blob); held.add(made); return made; };
        URL.revokeObjectURL = address => { held.delete(address); revokeObjectURL(address); };"""
    page = visit(address, script=script)
    give(page, BAD, FAKE)  # one that cannot be shown, and one that can
    expect(page.locator(".nearest-real img")).to_have_count(1)
    assert all(page.locator("img").evaluate_all(SIZES))
    held_count = """async () => {
        for (let frames = 0; held.size && frames < 300; frames++) await new Promise(requestAnimationFrame);
        return held.size;
    }"""
    assert page.evaluate(held_count) == 0
