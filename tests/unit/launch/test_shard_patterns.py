"""Patterns of shards as people type them, and what Hydra is given."""

import pytest

from orchestrator.config.parse import ConfigError
from orchestrator.launch.compose import compose
from orchestrator.launch.shard_patterns import quote_patterns


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("data.train=s3://b/x-{0..9}.tar", "data.train='s3://b/x-{0..9}.tar'"),
        ("+data.val=/d e/*.tar", "+data.val='/d e/*.tar'"),
        ("data.train='a-{0..9}.tar'", "data.train='a-{0..9}.tar'"),
        ("data.train=[a-{0,1}.tar, b?.tar]", "data.train=['a-{0,1}.tar','b?.tar']"),
        ("data.train=a{0..3}.tar,b*.tar", "data.train='a{0..3}.tar','b*.tar'"),  # of a sweep
        ("data.train=x-{a,b{0..3}}.tar", "data.train='x-{a,b{0..3}}.tar'"),
        ("data.train=s3://a/{0..9.tar", "data.train='s3://a/{0..9.tar'"),
        ("data.train=[a{0..1}.tar, ]", "data.train=['a{0..1}.tar']"),
        ("data.image=jpg;png", "data.image='jpg;png'"),
        ("data.image='jpg;png'", "data.image='jpg;png'"),
        ("data.image=jpg", "data.image=jpg"),
        ("data.train=/plain", "data.train=/plain"),
        ("data.url={a: 1}", "data.url={a: 1}"),
    ],
)
def test_patterns_are_quoted_for_hydra(given: str, quoted: str) -> None:
    assert [*quote_patterns([given])] == [quoted]


def test_patterns_reach_the_config_absolute() -> None:
    given = (
        "data=shards",
        "data.train=[/d/{0,1}.tar,s3://b/*.tar]",
        "data.val=/v",
        "data.manifest=/m",
    )
    (point,) = compose(given)
    location = point.config.data.location
    assert (location.url, location.manifest) == (None, "/m")
    assert (location.train, location.val) == (("/d/{0,1}.tar", "s3://b/*.tar"), ("/v",))


def test_what_the_shell_has_expanded_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        compose(["data.train=x-0.tar", "data.train=x-1.tar", "data.val=v"])
    assert error.value.value == "data.train"


def test_one_split_alone_can_be_indexed_and_evaluated() -> None:
    (point,) = compose(["data.val=/v/{0,1}.tar"])
    assert point.config.data.location.splits == ["val"]


def test_a_url_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        compose(["data.url=/u", "data.train=/t", "data.val=/v"])
    assert error.value.value == "/u"
