import os
import subprocess
import sys

import pytest

from ehap_tf.startup import prepare_environment

VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "TF_CPP_MIN_LOG_LEVEL", "GRPC_VERBOSITY")


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setenv("GRPC_VERBOSITY", "INFO")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    prepare_environment()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
    assert os.environ["GRPC_VERBOSITY"] == "INFO"


def test_a_process_with_tensorflow_loaded_stays_as_it_is(monkeypatch):
    """Its child processes would have oneDNN on where it has not, and round otherwise."""
    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    prepare_environment()
    assert not set(VARIABLES) & set(os.environ)


@pytest.mark.parametrize("module", ["ehap_tf.main", "ehap_tf.benchmark.__main__"])
def test_the_commands_switch_onednn_on_before_tensorflow_is_loaded(module):
    program = f"""
import os, sys
os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
sys.argv[:] = ["-m"]
from {module} import main
try:
    main(["x", "--help"])
except SystemExit:
    pass
print(os.environ.get("TF_ENABLE_ONEDNN_OPTS"), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 False"
