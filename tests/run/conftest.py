"""The scripted night lies beside these tests and is imported by name, here and in child processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
