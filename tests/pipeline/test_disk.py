"""A disk that fills up, played by a limit on the size of a file."""

import pytest

from ehap_tf import files

PROGRAM = """
import resource, signal, sys
from ehap_tf import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_full_disk_names_the_file_and_leaves_no_half_file(tmp_path, fresh_processes):
    done = fresh_processes.run(
        PROGRAM, "--model=resnet8", "--dataset=digits", "--stages=train", "--train_epochs=1",
        "--batch_size=256", f"--output_dir={tmp_path}/run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "best.npz" in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("run/**/*.partial*"))
    assert not list(tmp_path.glob("run/**/best.npz"))


@pytest.mark.parametrize("filename", [None, "temporary"])
def test_errors_while_writing_name_the_file(tmp_path, filename):
    path = tmp_path / "model.keras"
    with pytest.raises(OSError) as caught, files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device", str(temporary) if filename else None)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_tried_without_a_trace(tmp_path):
    files.require_writable(tmp_path / "new" / "model.tflite")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path, tmp_path / "file" / "model.tflite"):
        with pytest.raises(OSError, match="path cannot be written, give another") as caught:
            files.require_writable(path)
        assert caught.value.filename == str(path)


def test_errors_that_name_another_file_keep_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.atomic_path(tmp_path / "model.keras"):
        open(tmp_path / "other")  # noqa: SIM115
    assert caught.value.filename == str(tmp_path / "other")
