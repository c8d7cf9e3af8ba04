"""A prompt that does not fit is refused before the first stage trains."""

import pytest

from rlhf_peft.errors import DataError
from tests.resume.support import pipeline, run


@pytest.mark.parametrize("held", [False, True])
def test_a_prompt_that_does_not_fit_is_found_before_the_first_stage(tmp_path, held):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "' + "word " * 60 + '"}\n')
    long = {"path": str(file)}
    change = {"eval": {"every": 2, "dataset": long}} if held else {"dataset": long, "eval": {}}
    with pytest.raises(DataError, match=r"prompts\.jsonl.*max_new_tokens"):
        run(pipeline(tmp_path / "runs", rl=change))
    assert not (tmp_path / "runs" / "run").exists()


def test_what_a_later_stage_leaves_out_is_said_once(tmp_path, caplog):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a fox"}\n' * 8 + '{"prompt": ""}\n')
    rows = {"path": str(file), "on_bad_row": "skip"}
    run(pipeline(tmp_path / "runs", rl={"dataset": rows, "eval": {}}))
    assert caplog.text.count("left out 1 of 9 rows") == 1
