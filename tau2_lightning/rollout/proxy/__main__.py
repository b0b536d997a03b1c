"""The documented command ``python -m tau2_lightning.rollout.proxy``; the program is ``tau2_lightning.serve``."""

import sys

from tau2_lightning.serve import main

sys.exit(main(module="tau2_lightning.rollout.proxy"))
