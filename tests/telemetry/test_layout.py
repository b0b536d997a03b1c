"""The layout of dashboards: numbers that exist, and the validations of the run at hand."""

from __future__ import annotations

from tau2_lightning.run.compose import load_config
from tau2_lightning.telemetry.layout import as_data, layout, score_names
from tests.test_metrics_page import PAGE, documented, pattern


def test_every_number_of_the_layout_is_documented() -> None:
    sections = [line.removeprefix("## ").partition(" (")[0] for line in PAGE.splitlines() if line.startswith("## ")]
    known = [pattern(name) for section in sections for name in documented(section)]
    config = load_config(["domain=telecom"], check=False)
    names = [name for chapter in layout(config) for plot in chapter.plots for name in plot.names]
    assert len(names) > 25
    for name in names:
        short = name.removeprefix("eval/telecom/test/")
        assert any(one.fullmatch(short) for one in known), name
    assert not any(one.fullmatch("no/such/number") for one in known)


def test_validations_are_named_after_the_runs_domains_and_splits() -> None:
    one = load_config(["domain=retail", "valid_dataset.split=train", "valid_dataset.greedy=true"], check=False)
    assert score_names(one) == ["eval/retail/train-greedy/pass^1"]
    own = load_config(["domain=retail", "valid_dataset.split=tasks/easy.txt"], check=False)
    assert score_names(own) == ["eval/retail/easy/pass^1"]
    several = load_config(["domain=[mock,airline]"], check=False)
    assert score_names(several) == ["eval/macro/pass^1", "eval/mock/test/pass^1", "eval/airline/test/pass^1"]
    first = layout(several)[0]
    assert first.first and first.plots[0].names == tuple(f"eval/macro/pass^1{end}" for end in ("", "_low", "_high"))
    assert as_data([first])[0]["plots"][0]["band"] is True
