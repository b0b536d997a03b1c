"""Keys that hold URLs take none without http:// or https:// and a host."""

from __future__ import annotations

import pytest

from tau2_lightning.run.compose import load_config
from tau2_lightning.run.url_rules import check_urls


def keys(*words: str) -> list[str]:
    found = list(check_urls(load_config(words, check=False)))
    assert all("http://127.0.0.1:8000" in one.remedy and one.key in one.remedy for one in found)
    return [one.key for one in found]


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost:8000", "ftp://host/v1", "http://", "http://h:port/v1"])
def test_what_is_no_url_is_named(url: str) -> None:
    assert keys(f"econfig.user_llm_base_url='{url}'") == ["econfig.user_llm_base_url"]
    assert keys(f"econfig.judge_llm_base_url='{url}'") == ["econfig.judge_llm_base_url"]
    assert keys(f"rollout.engine_urls=['http://good:1','{url}']") == ["rollout.engine_urls"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://host.example", "http://[::1]:8000/v1"])
def test_urls_are_taken(url: str) -> None:
    assert not keys(f"econfig.user_llm_base_url='{url}'", f"rollout.engine_urls=['{url}']")


def test_a_domain_of_several_is_named_where_it_differs() -> None:
    several = "domain=[telecom,retail]"
    assert keys(several, "econfig.user_llm_base_url=host/v1") == ["econfig.user_llm_base_url"]
    own = "domains.retail.econfig.user_llm_base_url"
    assert keys(several, f"{own}=host/v1") == [own]
