"""What a network costs on a device: memory, and what its runtime and its compiler say."""

from ehap_tf.budget.c_header import export_c
from ehap_tf.budget.ethos_u import ACCELERATORS, EthosEstimate, compile_for_ethos_u, require_vela
from ehap_tf.budget.latency_table import LatencyTable, measure_operators
from ehap_tf.budget.micro import MicroCheck, missing_micro_operators, require_micro, verify_micro
from ehap_tf.budget.targets import LITERT, MICRO, TARGETS, require_target

__all__ = [
    "ACCELERATORS",
    "LITERT",
    "MICRO",
    "TARGETS",
    "EthosEstimate",
    "LatencyTable",
    "MicroCheck",
    "compile_for_ethos_u",
    "export_c",
    "measure_operators",
    "missing_micro_operators",
    "require_micro",
    "require_target",
    "require_vela",
    "verify_micro",
]
