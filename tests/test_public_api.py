import subprocess
import sys

import numpy as np
import pytest

import ehap_tf
from ehap_tf.pruning import plan_pruning, prune
from tests.pruning.nets import batch, random_scores, small_residual_net


def test_every_public_name_can_be_had():
    for name in ehap_tf.__all__:
        assert getattr(ehap_tf, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'prunes'"):
        _ = ehap_tf.prunes


@pytest.mark.slow
def test_slim_models_load_in_a_process_that_only_imports_the_package(tmp_path):
    model = small_residual_net()
    slim = prune(model, plan_pruning(model, random_scores(model, 1), prune_ratio=0.4))
    assert any("scatter" in layer.name for layer in slim.layers)
    x = batch(model)
    np.save(tmp_path / "x.npy", x)
    for name in ("slim.keras", "slim.h5", "slim"):
        slim.save(tmp_path / name)
    code = """
import sys, numpy as np, ehap_tf, tf_keras
x = np.load("x.npy")
for name in ("slim.keras", "slim.h5", "slim"):
    np.save(name.replace(".", "_") + "_y.npy", tf_keras.models.load_model(name, compile=False)(x))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for name in ("slim_keras", "slim_h5", "slim"):
        assert (np.load(tmp_path / f"{name}_y.npy") == np.asarray(slim(x))).all()
