"""The report without a browser: what is in the file, and what the command does."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.report.__main__ import main
from tau2_lightning.report.book import Book, packed_file
from tau2_lightning.report.packed import packed
from tau2_lightning.report.page import Page
from tau2_lightning.report.runs import find_runs, names_of, read_run, stamp_differences
from tau2_lightning.report.series import read_series, with_reward_interval
from tau2_lightning.rollout_files.reader import read_rollouts
from tests.report.made_run import BEGAN, STAMP, batch, episode, made_run, write_episodes, write_metrics


def unpacked(text: str) -> Any:
    """What the page's own program makes of ``packed`` data."""
    return json.loads(zlib.decompress(base64.b64decode(text), -zlib.MAX_WBITS))


def index_of(page: Path) -> dict[str, Any]:
    text = re.search(r'id="index">([^<]*)<', page.read_text())
    assert text is not None
    found: dict[str, Any] = unpacked(text[1])
    return found


def test_the_page_is_one_file_without_addresses(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main([str(made_run(tmp_path / "run")), "--out", str(out)]) == 0
    text = out.read_text()
    library = (Path(__file__).parents[2] / "tau2_lightning/report/assets/vendor/uPlot.iife.min.js").read_text()
    own = text.replace(library, "")
    assert not re.search(r"(src|href)\s*=", re.sub(r'type="text/plain"[^<]*', "", own.partition("<script>")[0]))
    assert "http://" not in own and "https://" not in own and "default-src 'none'" in own
    assert text.count("</script>") == text.count("<script") and library in text
    assert not (tmp_path / "page.html.tmp").exists()


def test_what_a_run_holds_is_nowhere_in_the_page_as_text(tmp_path: Path) -> None:
    run = tmp_path / "<b>run</b>"
    episodes = [episode(0, n, sample=n, said="</script><i>", task_id="</script>t") for n in range(2)]
    write_episodes(run, episodes)
    out = tmp_path / "page.html"
    assert main([str(run), "--out", str(out)]) == 0
    assert (
        "<b>run" not in out.read_text()
        and "</script>t" not in out.read_text()
        and "</script><i>" not in out.read_text()
    )
    assert index_of(out)["episodes"]["task"] == ["</script>t"] * 2


@pytest.mark.parametrize("value", ["</script>", "\u2028\u2029", "half \ud83d", '"\\', "é漢🙂", {"a": [1, None, 2.5]}])
def test_packed_data_comes_back(value: Any) -> None:
    text = packed(value)
    assert unpacked(text) == value and re.fullmatch(r"[A-Za-z0-9+/=]*", text)


def test_long_texts_are_held_once(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=1)
    file = packed_file(list(read_rollouts(run, kind="train")))
    assert len(file.texts) == 1 and len(file) == 15
    assert [len(unpacked(chunk)) for chunk in file.chunks] == [8, 7]
    assert all("content" not in unpacked(chunk)[0]["messages"][0] for chunk in file.chunks)


def test_the_index_names_the_place_of_every_episode(tmp_path: Path) -> None:
    run, out = made_run(tmp_path / "run", steps=2), tmp_path / "page.html"
    main([str(run), "--out", str(out)])
    index, text = index_of(out)["episodes"], out.read_text()
    chunks = {int(n): unpacked(data) for n, data in re.findall(r'id="chunk-(\d+)">([^<]*)<', text)}
    assert {len(values) for values in index.values()} == {34}
    assert {round(began, 1) for began in index["began"]} == {BEGAN, BEGAN + 10}, "to the second, not to six digits"
    for at in range(34):
        dialogue = chunks[index["chunk"][at]][index["place"][at]]
        assert len(dialogue["turns"]) == index["turns"][at] and dialogue["version"] == index["step"][at]
        words = " ".join(str(message.get("content")) for message in dialogue["messages"])
        assert f"this is task {index['task'][at].removeprefix('task_')}" in words or "task" in words


def test_newest_episodes_stay_when_there_are_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = made_run(tmp_path / "run", steps=5), tmp_path / "page.html"
    main([str(run), "--out", str(out), "--episodes", "30"])
    index = index_of(out)
    assert set(index["episodes"]["step"]) == {3, 4} and index["known"] == 5 * 15 + 4
    assert "49 older ones are not in it" in capsys.readouterr().out


def test_intervals_of_curves(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", steps=3)
    series = read_series(run)
    score = series["eval/mock/test/pass^1"]
    assert (score.band, score.steps) == ("interval", [0, 2]) and score.low[0] == pytest.approx(0.3)
    assert "eval/mock/test/pass^1_low" not in series
    assert series["batch/staleness/mean"].band == "range" and series["batch/staleness/mean"].high == [1.0] * 3
    with_reward_interval(series, read_rollouts(run))
    reward = series["reward/mean"]
    assert reward.band == "interval" and len(reward.low) == 3
    assert all(low < high for low, high in zip(reward.low, reward.high, strict=True))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path, 3)
    path = tmp_path / "metrics" / "metrics.csv"
    path.write_text(path.read_text() + "0.1,0.2")
    assert read_series(tmp_path)["reward/mean"].steps == [0, 1, 2]


def test_runs_are_found_in_the_folder_of_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        made_run(tmp_path / "e" / name, steps=1)
    assert find_runs([tmp_path / "e", tmp_path / "e" / "a"]) == [tmp_path / "e" / "a", tmp_path / "e" / "b"]
    assert names_of([Path("/x/a/t"), Path("/x/b/t")]) == ["a/t", "b/t"]
    assert main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert "holds no run" in error and "nothing" in error


def test_stamps_that_differ(tmp_path: Path) -> None:
    one = read_run(made_run(tmp_path / "one", steps=1), "one")
    other = read_run(made_run(tmp_path / "other", steps=1, stamp={**STAMP, "user": "gpt"}), "other")
    found = stamp_differences([one, other])
    assert [entry["of"] for entry in found] == ["validation mock", "training mock"]
    assert found[0]["fields"] == ["user: scripted or gpt"] and stamp_differences([one, one]) == []


def test_a_file_that_has_not_changed_is_not_packed_again(tmp_path: Path) -> None:
    run, book = made_run(tmp_path / "run", steps=2), Book()
    first = [book.packed(*file) for file in book.files(run)]
    again = [book.packed(*file) for file in book.files(run)]
    assert all(a is b for a, b in zip(first, again, strict=True))
    write_episodes(run, batch(1, groups=1))
    changed = [book.packed(*file) for file in book.files(run)]
    assert [a is b for a, b in zip(first, changed, strict=True)] == [False, True, True]


def test_watching_writes_until_it_is_interrupted(tmp_path: Path) -> None:
    run, out, waits = made_run(tmp_path / "run", steps=1), tmp_path / "page.html", []

    def wait(seconds: float) -> None:
        waits.append((seconds, index_of(out)["reload"], len(index_of(out)["episodes"]["step"])))
        if len(waits) == 2:
            raise KeyboardInterrupt
        write_episodes(run, batch(1))

    assert main([str(run), "--out", str(out), "--watch", "--every", "3"], wait=wait) == 0
    assert waits == [(3.0, 3.0, 19), (3.0, 3.0, 34)]
    assert index_of(out)["reload"] is None


def test_a_page_replaces_the_one_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = made_run(tmp_path / "run", steps=1), tmp_path / "page.html"
    main([str(run), "--out", str(out)])
    before = out.read_bytes()
    monkeypatch.setattr(Page, "_vocabulary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(run), "--out", str(out)])
    assert out.read_bytes() == before


def test_the_default_file_is_in_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = made_run(tmp_path / "one", steps=1), made_run(tmp_path / "other", steps=1)
    main([str(one)])
    main([str(one), str(other)])
    assert (one / "report.html").is_file() and (tmp_path / "report.html").is_file()
    assert len(index_of(tmp_path / "report.html")["runs"]) == 2
