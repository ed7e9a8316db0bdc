import pathlib
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MICRO = [
    # The only wheels that there are.
    "tflite-micro>=0.dev20260101; sys_platform == 'linux' and platform_machine == 'x86_64'",
    "ethos-u-vela>=5,<6",
]


class BuildWithRecipes(build_py):
    """Copies `flags/` into the wheel; an editable install reads the recipes where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = pathlib.Path(self.build_lib, "ehap_tf", "recipes")
        folder.mkdir(parents=True, exist_ok=True)
        for path in pathlib.Path("flags").glob("*.cfg"):
            shutil.copy(path, folder)


setup(
    name="ehap_tf",
    version="0.2.0.dev0",
    description="Second-order filter pruning and full-integer export for trained Keras CNNs",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["ehap_tf", "ehap_tf.*"]),
    package_data={"ehap_tf": ["py.typed"], "ehap_tf.report": ["*.html.j2"]},
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["ehap-tf = ehap_tf.main:main"]},
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "tf_keras>=2.21,<2.22",
        "tensorflow-model-optimization>=0.8.1,<0.9",
        "tensorflow-datasets>=4.9.10,<4.10",
        "importlib_resources>=6",
        "ai-edge-litert>=2.3,<2.4",
        "flatbuffers>=24",
        "absl-py>=1.4,<2",
        "numpy>=2,<3",
        "scipy>=1.14,<2",
        "scikit-learn>=1.5,<2",
        "matplotlib>=3.9,<4",
        "jinja2>=3.1,<4",
        "rich>=13",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.21,<2.22"],
        "micro": MICRO,
        "docs": [
            "mkdocs-material>=9.5,<10",
            "mkdocstrings[python]>=1,<2",
            "pymdown-extensions>=10,<13",
            "latex2mathml>=3.77,<4",
        ],
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            *MICRO,
            "hypothesis>=6.100,<7",
            "ruff>=0.9",
            "mypy>=1.14",
            "import-linter>=2.1",
            "pre-commit>=4",
        ],
    },
)
