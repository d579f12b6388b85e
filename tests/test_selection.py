"""The paper's rule for checkpoints, over histories made by hand and at random."""

from hypothesis import given
from hypothesis import strategies as st

from hmx.selection import select, why_none


def history(rewards, kls):
    return [
        {"step": 10 * i, "eval_reward": reward, "eval_kl": kl}
        for i, (reward, kl) in enumerate(zip(rewards, kls, strict=True))
    ]


def test_the_first_forward_checkpoint_above_the_threshold_and_the_same_reverse_step():
    chosen = select(history([3, 7.5, 7.6, 9], [0, 0.2, 0.3, 0.4]), history([3, 2, 1, 0], [0, 0.1, 0.3, 0.9]), 7.5)
    assert (chosen.forward, chosen.reverse, chosen.further_than_forward) == (20, 20, False)


def test_an_earlier_reverse_checkpoint_if_the_same_one_moved_further():
    chosen = select(history([3, 6, 6, 9], [0, 0.2, 0.3, 0.4]), history([3, 2, 1, 0], [0, 0.3, 0.4, 0.5]), 7.5)
    assert (chosen.forward, chosen.reverse, chosen.further_than_forward) == (30, 20, False)
    wavering = history([3, 2, 1, 0], [0, 0.3, 0.1, 0.5])
    assert select(history([3, 6, 6, 9], [0, 0.2, 0.3, 0.4]), wavering, 7.5).reverse == 20  # the latest, not the nearest


def test_the_same_step_marked_if_every_trained_reverse_checkpoint_moved_further():
    chosen = select(history([3, 6, 6, 9], [0, 0.1, 0.1, 0.1]), history([3, 2, 1, 0], [0, 0.3, 0.4, 0.5]), 7.5)
    assert (chosen.forward, chosen.reverse, chosen.further_than_forward) == (30, 30, True)
    assert "same step" in chosen.reason


def test_a_reward_without_all_of_its_grades_says_so():
    ups, downs = history([3, 8], [0, 0.2]), history([3, 1], [0, 0.1])
    assert "unreadable" not in select(ups, downs, 7.5).reason
    ups[1]["eval_judge_invalid"] = 39
    assert "(reward 8.00, 39 grades unreadable, KL 0.200)" in select(ups, downs, 7.5).reason
    ups[1]["eval_judge_invalid"] = 1
    assert "(reward 8.00, 1 grade unreadable, KL 0.200)" in select(ups, downs, 7.5).reason


def test_a_small_kl_shows_the_digits_that_decide():
    reason = select(history([3, 8], [0, 0.000123]), history([3, 1], [0, 0.000456]), 7.5).reason
    assert "KL 0.000123)" in reason and "moved further at every step (KL 0.000456 there)" in reason


def test_nothing_without_a_forward_checkpoint_above_the_threshold():
    assert select(history([3, 7.5], [0, 0.1]), history([3, 1], [0, 0.1]), 7.5) is None
    assert select(history([9, 7.0], [0, 0.1]), history([9, 1], [0, 0.1]), 7.5) is None  # step 0 is the untrained model
    assert select(history([3, None], [0, 0.1]), history([3, 1], [0, 0.1]), 7.5) is None
    assert select(history([3, 8], [0, 0.1]), history([3], [0]), 7.5) is None  # reverse has not come so far


def test_why_nothing_was_selected():
    low, passed, mute = history([3, 7.5], [0, 0.1]), history([3, 8], [0, 0.1]), history([None, None], [0, 0.1])
    assert why_none(low, 7.5) == "forward never passed 7.5"
    assert why_none(history([9, None], [0, 0.1]), 7.5) == "forward never passed 7.5"  # but for the untrained model
    assert why_none(passed, 7.5) == "reverse has not come so far"
    assert why_none(mute, 7.5) == "no evaluation of forward had a readable grade"


evaluations = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2)), min_size=1, max_size=12)


@given(evaluations, evaluations, st.floats(0, 9))
def test_the_rule_holds_for_any_history(ups, downs, threshold):
    forward, reverse = (history(*zip(*one, strict=True)) for one in (ups, downs))
    chosen = select(forward, reverse, threshold)
    passing = [one["step"] for one in forward[1:] if one["eval_reward"] > threshold]
    if chosen is None:
        assert not passing or passing[0] > reverse[-1]["step"]
        return
    assert chosen.forward == passing[0]
    assert 0 < chosen.reverse <= chosen.forward
    kl = next(one["eval_kl"] for one in forward if one["step"] == chosen.forward)
    later = [one for one in reverse if chosen.reverse < one["step"] <= chosen.forward]
    taken = next(one for one in reverse if one["step"] == chosen.reverse)
    if chosen.further_than_forward:
        assert chosen.reverse == chosen.forward
        assert all(one["eval_kl"] > kl for one in reverse[1:] if one["step"] <= chosen.forward)
    else:
        assert taken["eval_kl"] <= kl
        assert all(one["eval_kl"] > kl for one in later)


@given(evaluations, evaluations, st.floats(0, 9))
def test_the_same_step_rule_differs_in_the_reverse_step_alone(ups, downs, threshold):
    forward, reverse = (history(*zip(*one, strict=True)) for one in (ups, downs))
    paper, same = (select(forward, reverse, threshold, rule) for rule in ("paper", "same_step"))
    assert (paper is None) == (same is None)
    if same:
        assert same.forward == same.reverse == paper.forward
        assert not same.further_than_forward  # the exception is the paper's rule's
