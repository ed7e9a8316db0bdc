import logging
import os

from ehap_tf.native_output import NativeErrorOutput


def test_descriptor_2_is_silent_and_python_is_not(capfd):
    output = NativeErrorOutput()
    with output.captured():
        os.write(2, b"from C++\n")
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": "from Python"}))
    assert capfd.readouterr().err == "from Python\n"


def test_a_logging_handler_that_was_made_meanwhile_goes_on(capfd):
    with NativeErrorOutput().captured():
        handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "later"}))
    assert capfd.readouterr().err == "later\n"
