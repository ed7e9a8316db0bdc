"""The header: a program that is built with it holds the file and makes the same inputs."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.quantization.tflite.evaluate import to_integers

SHIPPED = pathlib.Path(__file__).parents[2] / "saved_models/resnet32_cifar10/model_int8.tflite"
layers = tf_keras.layers


@pytest.fixture(scope="module")
def qat_model() -> tf_keras.Model:
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(4)]
    )
    x = np.random.default_rng(0).normal(0.0, 2.0, (40, 8, 8, 3)).astype(np.float32)
    return ehap.quantize(model, "ptq", representative_data=x)


PROGRAM = r"""
#include <stdio.h>
#include "small net.h"
int main(void) {
  unsigned long sum = 0;
  for (int i = 0; i < NET_BYTES; ++i) sum = (31 * sum + net_data[i]) % 1000003;
  printf("%lu %d %d %s\n", sum, NET_INPUT_SIZE, NET_OUTPUT_SIZE, net_labels[1]);
  for (int c = 0; c < 3; ++c)
    for (int p = 0; p < 256; ++p) printf("%d ", net_from_pixel((unsigned char)p, c));
  return (int)((unsigned long long)(void*)net_data % 16);
}
"""


@pytest.mark.parametrize(("compiler", "suffix"), [("gcc", "c"), ("g++", "cc")])
def test_a_program_holds_the_file_and_makes_its_inputs(tmp_path, qat_model, compiler, suffix):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    path = tmp_path / "small net.tflite"
    mean, std = [0.2, 0.4, 0.6], [0.5, 0.25, 0.1]
    file = ehap.export_tflite(
        qat_model,
        path,
        normalization=ehap.Normalization(mean, std),
        labels=["cat", 'a "dog"', "\\", "4"],
    )
    header = ehap.export_c(path, name="net")
    assert header == tmp_path / "small net.h"
    (tmp_path / f"main.{suffix}").write_text(PROGRAM)
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-variable"]
    subprocess.run([compiler, *strict, f"main.{suffix}", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = done.stdout.split("\n", 1)
    total = 0
    for byte in path.read_bytes():
        total = (31 * total + byte) % 1000003
    shapes = file.input.shape, file.output.shape
    assert first == f'{total} {np.prod(shapes[0])} {np.prod(shapes[1])} a "dog"'
    pixels = np.arange(256)[None] / 255.0 - np.asarray(mean)[:, None]
    expected = to_integers((pixels / np.asarray(std)[:, None]).astype(np.float32), file.input)
    received = np.asarray(second.split(), int).reshape(3, 256)
    # Halves are rounded away from zero there, and to even numbers here.
    assert (received == expected).mean() > 0.99 and np.abs(received - expected).max() <= 1


def test_what_is_no_name_in_c_is_refused():
    with pytest.raises(ValueError, match=r"name must be a name in C\. Received: '2 nets'"):
        ehap.export_c(SHIPPED, name="2 nets")
