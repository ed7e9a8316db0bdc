"""`python -m ehap_tf` is `python -m ehap_tf.main`."""

import sys

from ehap_tf.main import main

if __name__ == "__main__":
    sys.exit(main())
