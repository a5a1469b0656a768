"""`python -m thor_policy_ros.evaluation COMMAND ...`, the same as `thor-policy`."""

import sys

from thor_policy_ros.evaluation.cli import main

sys.exit(main())
