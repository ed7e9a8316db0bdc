import numpy as np

from ehap_tf.channels import ZERO, ChannelIds


def test_either_lives_where_one_source_lives():
    ids = ChannelIds()
    a, b = ids.filters("a", 3), ids.filters("b", 3)
    both = ids.either(a, b)
    alive = ids.alive({"a": np.array([True, False, False]), "b": np.array([True, True, False])})
    assert alive[both].tolist() == [True, True, False]


def test_either_with_padding_is_the_other():
    ids = ChannelIds()
    a = ids.filters("a", 2)
    padded = np.array([ZERO, a[1]])
    assert ids.either(padded, a).tolist() == a.tolist()


def test_tie_makes_one_group_even_through_a_sum():
    ids = ChannelIds()
    a, b, c = (ids.filters(name, 2) for name in "abc")
    ids.tie(ids.either(a, b), c)
    for place in range(2):
        assert len(set(ids.groups(np.array([a[place], b[place], c[place]])).tolist())) == 1
    assert ids.groups(a)[0] != ids.groups(a)[1]


def test_freezing_reaches_groups_tied_before_and_after():
    ids = ChannelIds()
    a, b, c = (ids.filters(name, 1) for name in "abc")
    ids.tie(a, b)
    ids.freeze(a, "why")
    ids.tie(b, c)
    assert [ids.frozen_reason(int(x[0])) for x in (a, b, c)] == ["why"] * 3


def test_settle_replaces_only_zeros():
    ids = ChannelIds()
    a = ids.filters("a", 2)
    settled = ids.settle(np.array([a[0], ZERO]), "bias")
    assert settled[0] == a[0]
    assert settled[1] != ZERO
    assert ids.frozen_reason(int(settled[1])) == "bias"
