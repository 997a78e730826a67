import pytest

from rdc.arguments.close_names import close_name, did_you_mean

NAMES = ("fab", "fab-t", "apgd-ce", "apgd-dlr", "square")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("fub", "fab"), ("apgd_ce", "apgd-ce"), ("SQUARE", "square"), ("sqare", "square"), ("agpd-dlr", "apgd-dlr")],
)
def test_a_slip_is_understood(word, meant):
    assert close_name(word, NAMES) == meant
    assert did_you_mean(word, NAMES) == f" (did you mean '{meant}'?)"


@pytest.mark.parametrize("word", ["zzz", "", "x" * 10**6, None, 3, b"fab", "fab"])
def test_nothing_is_made_up(word):
    """Nor is a name suggested to somebody who wrote it."""
    assert close_name(word, NAMES) is None and did_you_mean(word, NAMES) == ""


def test_words_that_look_different():
    assert close_name("gpu", ("cpu", "cuda"), {"gpu": "cuda"}) == "cuda"
