from ehap_tf.benchmark.contenders import line_look


def test_lines_of_many_criteria_can_be_told_apart():
    looks = {tuple(line_look(number).values()) for number in range(30)}
    assert len(looks) == 30
