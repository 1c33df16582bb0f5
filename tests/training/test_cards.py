"""What a model's card says of who judged."""

import pytest

from sao.config import make_config
from sao.config.judging import READERS
from sao.training.cards import other_judge


@pytest.mark.parametrize("method", READERS)
def test_a_model_that_reads_answers_is_no_rule(method: str) -> None:
    assert other_judge(make_config({"judging": {"method": method}})) is None
    judging = {"method": method, "engine": {"name": "vllm", "model": "org/judge"}}
    assert other_judge(make_config({"judging": judging})) == "org/judge"


def test_a_control_is_named() -> None:
    config = make_config({"judging": {"method": "checks"}, "prompts": {"checkable": 1.0}})
    assert other_judge(config) == "the rule 'checks'"
