"""What is said where torch is not installed, and what training imports where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_without_torch_names_the_extra() -> None:
    out = _run(
        "import sys\nsys.modules['torch'] = None\nimport loramerge as lm\n"
        "try:\n    lm.inject_trainable_lora\n"
        "except lm.LoramergeError as error:\n    print(error.exit_code, error)"
    )
    assert out.startswith("2 training needs torch") and "loramerge[train]" in out


def test_training_imports_torch_and_nothing_heavier() -> None:
    out = _run(
        "import sys, loramerge as lm\nlm.save_lora_weight, lm.GradientAudit\n"
        "import loramerge.train.run.loop, loramerge.train.run.resume\n"
        "print('torch' in sys.modules, [m for m in ('diffusers', 'transformers', 'accelerate', "
        "'peft') if m in sys.modules])"
    )
    assert out.strip() == "True []"
