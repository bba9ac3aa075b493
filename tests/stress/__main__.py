"""Harm runs at random, resume them, and compare them with undisturbed ones: `python -m tests.stress --rounds 100`."""

import argparse
import logging
import secrets
import sys
import tempfile
from pathlib import Path

from tests.stress.rounds import DEVICES, PROJECT, Harm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rounds", type=int, default=100, help="how many runs to harm (default: 100)")
parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="of all that is drawn (default: any)")
parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
parser.add_argument("--data", type=Path, default=PROJECT / "data", help="Fashion-MNIST's folder")
parser.add_argument("--device", choices=DEVICES, default="cpu", help="what the runs train on (default: cpu)")
arguments = parser.parse_args()
logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports each resume
folder = Path(tempfile.mkdtemp(prefix="lenet-stress-"))
print(f"seed {arguments.seed}, {arguments.rounds} rounds in {folder}", flush=True)
harm = Harm(PROJECT, folder, arguments.data.absolute(), arguments.device)
sys.exit(not harm.play(arguments.rounds, arguments.seed, arguments.jobs))
