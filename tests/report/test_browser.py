"""The report in a browser: opened from the disk, without a network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.report.__main__ import main
from tests.report.conftest import Opened
from tests.report.made_run import (
    STAMP,
    batch,
    episode,
    made_run,
    write_episodes,
    write_metrics,
    write_scores,
    write_vocabulary,
)

pytestmark = pytest.mark.browser


def rows(page: Any) -> list[str]:
    page.wait_for_timeout(60)
    return [" ".join(row.all_inner_texts()).replace("\n", " ") for row in page.locator(".grid .row").all()]


def see(page: Any, selector: str) -> Any:
    """Waits until what is asserted of the element is so."""
    from playwright.sync_api import expect

    return expect(page.locator(selector))


def count(page: Any) -> int:
    return int(re.match(r"\d+", page.locator("#count").inner_text())[0])  # type: ignore[index]


def test_a_curve_leads_to_its_step_and_that_to_an_episode(opened: Opened, tmp_path: Path) -> None:
    page = opened(made_run(tmp_path / "run", steps=4))
    plot = page.locator('[data-metric="reward/mean"] .u-over')
    plot.wait_for()
    box = plot.bounding_box()
    plot.click(position={"x": box["width"] / 3, "y": box["height"] / 2})  # the second of four steps
    assert page.locator("#tab-episodes").get_attribute("aria-selected") == "true"
    assert page.locator("#filter-step").input_value() == "1" and page.locator("#filter-kind").input_value() == "train"
    assert count(page) == 15
    page.locator(".grid .row").first.click()
    page.wait_for_selector("#dialogue .message.system")
    text = page.locator("#dialogue").inner_text()
    assert "task_" in text and "train step 1" in text
    page.get_by_role("button", name="curve", exact=True).click()
    assert page.locator('[data-metric="reward/mean"]').is_visible()


def test_filters_and_sorting(opened: Opened, tmp_path: Path) -> None:
    page = opened(made_run(tmp_path / "run", steps=4), at="#tab=episodes")
    assert count(page) == 4 * 15 + 4
    expected = {
        "step": ("1-2", 30), "task": ("TASK_1", 17), "reward": ("1", 26), "staleness": ("1-", 6 * 3 + 3 + 0),
    }  # fmt: skip
    for name, (value, n) in expected.items():
        page.locator(f"#filter-{name}").fill(value)
        if name != "staleness":
            assert count(page) == n, name
        else:
            assert 0 < count(page) < 64
        page.locator(f"#filter-{name}").fill("")
    for name, (option, n) in {
        "kind": ("validate", 4), "fault": ("engine:timeout", 4), "mistake": ("*", 8),
        "userfault": ("leaks_instructions", 8), "status": ("filtered", 8), "domain": ("mock", 64),
    }.items():  # fmt: skip
        page.locator(f"#filter-{name}").select_option(option)
        assert count(page) == n, name
        page.locator(f"#filter-{name}").select_option("")
    head = page.locator(".grid .head button[title=advantage]")
    head.click()
    assert "0.75" in rows(page)[0]
    page.locator(".grid .head button[title=advantage]").click()
    assert "-0.25" in rows(page)[0]
    assert page.locator(".grid .head button[title=advantage]").get_attribute("aria-sort") == "ascending"


def test_a_dialogue_with_its_tools_reward_tokens_and_group(opened: Opened, tmp_path: Path) -> None:
    page = opened(
        made_run(tmp_path / "run", steps=2), at="#tab=episodes&f.step=1&f.kind=train&f.group=0&sort=sample.up"
    )
    page.locator(".grid .row").nth(1).click()
    dialogue = page.locator("#dialogue")
    dialogue.locator(".call").wait_for()
    assert "check_line" in dialogue.locator(".call").inner_text()
    assert '"status": "active"' in dialogue.locator(".message.tool").inner_text()
    assert "tau2: DB" in dialogue.locator("table.reward").inner_text()
    assert "engine 200" in dialogue.inner_text() or "engine 0.2s" in dialogue.inner_text()
    tokens = dialogue.locator(".tokens span")
    assert tokens.count() == 12 and "advantage 0.75" in tokens.first.get_attribute("title")
    assert "trainer" in tokens.first.get_attribute("title") and "(0.125)" in tokens.first.get_attribute("title")
    shades = {}
    for mode in ("advantage", "logprob", "mismatch", "version", "none"):
        dialogue.locator("#colour").select_option(mode)
        see(page, "#colour").to_have_value(mode)
        page.wait_for_timeout(100)
        shades[mode] = tokens.first.get_attribute("style") or ""
    assert shades["none"] == "" and len(set(shades.values())) == len(shades)
    assert dialogue.locator(".siblings button").count() == 4
    page.locator("#side").click()
    page.wait_for_selector(".sides")
    assert page.locator(".sides > div").count() == 4


def test_faults_of_user_and_infrastructure_are_marked(opened: Opened, tmp_path: Path) -> None:
    page = opened(made_run(tmp_path / "run", steps=1), at="#tab=episodes&f.userfault=*")
    page.locator(".grid .row").first.click()
    page.wait_for_selector("#dialogue .message.faulty")
    assert "leaks_instructions" in page.locator("#dialogue .message.faulty").inner_text()
    assert "Not trained on: filtered, no signal" in page.locator("#dialogue").inner_text()
    page.locator("#filter-userfault").select_option("")
    page.locator("#filter-status").select_option("failed")
    page.locator(".grid .row").first.click()
    page.wait_for_selector("#dialogue p.fault")
    assert "engine:timeout: no completion in 5 s" in page.locator("#dialogue p.fault").first.inner_text()


def test_nothing_that_a_run_holds_is_read_as_markup(opened: Opened, tmp_path: Path) -> None:
    evil = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"> \u2028\u2029 &lt;b&gt; half \ud83d'  # noqa: E501
    run = tmp_path / "<img src=x onerror=window.hacked=1>"
    episodes = [
        episode(0, n, sample=n, reward=float(n), said=evil, result=evil, prompt=evil * 9, task_id=evil, domain="mock",
                cause=evil, mistakes={evil: 1}, user_faults={evil: 1}, termination=evil, user=evil) for n in range(2)
    ]  # fmt: skip
    write_episodes(run, episodes, {**STAMP, evil: evil})
    write_vocabulary(run, [evil] * 8)
    page = opened(run, at="#tab=episodes")
    page.locator(".grid .row").first.click()
    page.wait_for_selector("#dialogue .message.tool")
    shown = page.locator("#dialogue .message.tool pre").inner_text()
    assert '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1">' in shown
    assert "&lt;b&gt;" in shown
    said = page.evaluate(
        "[...document.querySelectorAll('#dialogue .message.tool pre')].map((one) => one.textContent)[0]"
    )
    assert "\u2028\u2029" in said
    page.locator("#tab-stamps").click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img").count() == 0 and page.locator("header img").count() == 0


def test_everything_can_be_done_with_the_keyboard(opened: Opened, tmp_path: Path) -> None:
    page = opened(made_run(tmp_path / "run", steps=3))
    page.locator('[data-metric="reward/mean"] .u-over').wait_for()
    page.locator('[data-metric="reward/mean"]').focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.locator("#filter-step").input_value() == "1"
    page.locator("#grid").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#dialogue .message")
    assert page.evaluate("document.activeElement.id") == "dialogue"
    first = page.locator("#dialogue h2").inner_text()
    page.keyboard.press("j")
    see(page, "#dialogue h2").not_to_have_text(first)
    page.keyboard.press("s")
    page.wait_for_selector(".sides")
    page.keyboard.press("c")
    see(page, "#colour").to_have_value("logprob")
    page.keyboard.press("Escape")
    assert page.locator("#dialogue").count() == 0 and page.evaluate("document.activeElement.id") == "grid"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter-task"
    page.keyboard.press("Escape")
    for key, tab in (("2", "timeline"), ("4", "stamps"), ("1", "curves")):
        page.keyboard.press(key)
        assert page.locator(f"#tab-{tab}").get_attribute("aria-selected") == "true"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()


def test_dark_and_light(opened: Opened, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=1)
    dark = opened(run, color_scheme="dark")
    light = opened(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert dark.evaluate(ground) == "rgb(20, 23, 27)" and light.evaluate(ground) == "rgb(255, 255, 255)"
    light.keyboard.press("t")
    assert light.evaluate(ground) == "rgb(20, 23, 27)"


def test_several_runs_lie_over_each_other_and_different_stamps_are_said(opened: Opened, tmp_path: Path) -> None:
    one = made_run(tmp_path / "one", steps=3)
    other = made_run(tmp_path / "other", steps=3, up=0.1, stamp={**STAMP, "judge": "gpt-9", "digest": "ffff"})
    page = opened(one, other)
    warning = page.locator("#warning").inner_text()
    assert "not comparable" in warning and "judge: none or gpt-9" in warning
    page.locator('[data-metric="reward/mean"] .u-over').wait_for()
    label = page.locator('[data-metric="reward/mean"]').get_attribute("aria-label")
    assert "one from" in label and "other from" in label
    page.locator("#tab-stamps").click()
    assert page.locator("tr.differs").count() >= 2
    page.locator("#tab-episodes").click()
    assert count(page) == 2 * 49
    page.locator("#runs input").nth(1).uncheck()
    assert count(page) == 49
    same = opened(one, one.parent / "one")
    assert not same.locator("#warning").is_visible()


def test_the_timeline_shows_phases_and_idle_time(opened: Opened, tmp_path: Path) -> None:
    page = opened(made_run(tmp_path / "run", steps=3), at="#tab=timeline")
    table = page.locator("#view-timeline table").inner_text()
    assert re.search(r"rollout\s+12s", table) and re.search(r"train\s+9s", table) and "idle" in table
    box = page.locator("canvas.lanes").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.02, box["y"] + 30)
    assert "rollout" in page.locator("#view-timeline [aria-live]").inner_text()
    page.mouse.click(box["x"] + box["width"] * 0.02, box["y"] + 30)
    assert page.locator("#filter-step").input_value() == "0"


def test_axes_and_times_are_round_and_long_names_stay_in_their_column(opened: Opened, tmp_path: Path) -> None:
    name = "[service_issue]airplane_mode_on|" * 6
    run = tmp_path / "run"
    write_episodes(run, [episode(0, n, sample=n, task_id=name) for n in range(4)])
    page = opened(run, at="#tab=episodes")
    assert page.evaluate("[around(null, 0, 0), around(null, 0, 1), around(null, 4, 4)]") == [
        [0, 1], [0, 1.06], [2, 6],
    ]  # fmt: skip
    assert page.evaluate("ticks({ from: 3, to: 119 })") == [15 * n for n in range(1, 8)]
    assert page.evaluate("[59.7, 90, 3599, 3600, 7260].map(seconds)") == ["1m", "1m 30s", "1h", "1h", "2h 1m"]
    page.locator(".grid .row").first.click()
    page.locator("#side").click()
    page.wait_for_selector(".sides")
    heads = [box.bounding_box() for box in page.locator(".sides h2").all()]
    assert len(heads) == 4
    for head, box in zip(heads, page.locator(".sides > div").all(), strict=True):
        assert head["width"] <= box.bounding_box()["width"]
    assert page.evaluate(
        "[...document.querySelectorAll('.sides h2')].every((one) => one.scrollWidth <= one.clientWidth)"
    )


def test_a_page_that_is_followed_loads_itself_again_where_one_reads(opened: Opened, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=2)
    out = tmp_path / "report.html"

    def grow(_: float) -> None:
        raise KeyboardInterrupt

    from tau2_lightning.report.page import Page
    from tau2_lightning.report.runs import read_run

    page_file = Page(10_000)
    page_file.write([read_run(run, "run")], out, reload_s=4.0, made="now")
    page = opened(at="#tab=episodes&f.step=1")
    page.locator(".grid .row").nth(2).click()
    page.wait_for_selector("#dialogue .message")
    opened_one = page.locator("#dialogue h2").inner_text()
    episodes = batch(1, groups=5)
    write_episodes(run, episodes)
    page_file.write([read_run(run, "run")], out, reload_s=4.0, made="later")
    see(page, "#made").to_contain_text("later", timeout=60_000)
    page.wait_for_selector("#dialogue h2")
    assert count(page) == 23 and page.locator("#dialogue h2").inner_text() == opened_one
    page.locator("#follow").click()
    assert main([str(run), "--out", str(out), "--watch"], wait=grow) == 0, "Ctrl-C leaves a page that stays as it is"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert not page.locator("#follow").is_visible()


def test_a_run_without_rollouts_still_has_curves(opened: Opened, tmp_path: Path) -> None:
    write_metrics(tmp_path / "old", 3)
    page = opened(tmp_path / "old")
    page.locator('[data-metric="reward/mean"] .u-over').wait_for()
    page.locator("#all-metrics").click()
    assert page.locator(".card").count() >= 6
    page.locator("#metric-search").fill("idle engine")
    assert page.locator(".card").count() == 1
    page.locator("#tab-episodes").click()
    assert count(page) == 0


def many(root: Path, episodes: int, per_step: int = 200) -> Path:
    """A run of so many episodes of eight turns of forty tokens, as a large run has them."""
    write_metrics(root, episodes // per_step)
    write_vocabulary(root)
    for step in range(episodes // per_step):
        some = [
            episode(
                step, n, group=n // 8, sample=n % 8, reward=float(n % 3 == 0), turns=8, tokens=40, said="I see. " * 30
            )
            for n in range(per_step)
        ]
        write_episodes(root, some)
        write_scores(root, some)
    return root


@pytest.mark.slow
def test_ten_thousand_episodes_open_within_two_seconds(opened: Opened, tmp_path: Path) -> None:
    page = opened(many(tmp_path / "run", 10_000), at="#tab=episodes")
    times = []
    for _ in range(3):
        page.reload()
        page.wait_for_selector("html[data-ready]")
        times.append(int(page.locator("html").get_attribute("data-ready")))
    assert count(page) == 10_000 and page.locator(".grid .row").count() < 120
    print(f"opened in {times} ms, {(tmp_path / 'report.html').stat().st_size / 2**20:.1f} MiB")
    assert min(times) < 2000
    began = page.evaluate("performance.now()")
    page.locator("#filter-reward").fill("1")
    assert 3000 < count(page) < 4000
    page.locator(".grid .row").nth(3).click()
    page.wait_for_selector("#dialogue .message.tool")
    assert page.evaluate("performance.now()") - began < 4000


@pytest.mark.skipif(
    "REPORT_SCREENSHOTS" not in os.environ, reason="REPORT_SCREENSHOTS names the folder of the pictures"
)
def test_screenshots(opened: Opened, tmp_path: Path) -> None:
    """``REPORT_SCREENSHOTS=docs pytest tests/report -k screenshots`` makes the pictures of docs/report.md again.

    ``REPORT_RUNS="RUN RUN"`` names the runs that they show; without it, two that are made up.
    """
    folder = Path(os.environ["REPORT_SCREENSHOTS"])
    runs = [Path(name) for name in os.environ.get("REPORT_RUNS", "").split()]
    if not runs:
        runs = [made_run(tmp_path / "grpo-seed1", steps=12), made_run(tmp_path / "grpo-seed2", steps=12, up=0.03)]
    page = opened(*runs)
    page.locator('[data-metric="reward/mean"] .u-over').wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "report_curves.png")
    page.locator("#tab-timeline").click()
    page.wait_for_timeout(300)
    page.screenshot(path=folder / "report_timeline.png")
    steps = page.evaluate("[...new Set(data.episodes.step.filter((_, at) => data.episodes.kind[at] === 'train'))]")
    run = "&f.run=0" if len(runs) > 1 else ""
    where = f"#tab=episodes&f.step={sorted(steps)[len(steps) // 2]}&f.kind=train&f.status=trained{run}&sort=group.up"
    page.goto(page.url.partition("#")[0] + where)
    page.locator(".grid .row").nth(1).click()
    page.wait_for_selector("#dialogue .tokens")
    page.locator("#dialogue .message.assistant").first.scroll_into_view_if_needed()
    page.locator("#dialogue .times").first.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    page.screenshot(path=folder / "report_episode.png")
    page.keyboard.press("t")
    page.keyboard.press("s")
    page.wait_for_selector(".sides")
    page.wait_for_timeout(200)
    page.screenshot(path=folder / "report_group_dark.png")
