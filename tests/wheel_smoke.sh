#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment without the dev extras, and does the main job on a tiny
# model from a folder that is not the checkout: what a person who typed `pip install autokernel` would meet.
# Environment: PYTHON (interpreter), BUILDER (a Python with `build`), TORCH (requirement), CONSTRAINTS (file or empty).
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip_options=(--quiet --disable-pip-version-check)
if [ -n "${CONSTRAINTS:-}" ]; then pip_options+=(-c "$PWD/$CONSTRAINTS"); fi

"${BUILDER:?a Python that has the build package}" -m build --wheel --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 \
  || { cat "$work/build.log"; exit 1; }
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install "${pip_options[@]}" "${TORCH:-torch}"
"$work/venv/bin/python" -m pip install "${pip_options[@]}" "${TORCH:-torch}" "$work"/dist/*.whl
if "$work/venv/bin/python" -c 'import pytest' 2>/dev/null; then echo "expected no dev tools in the environment"; exit 1; fi

mkdir "$work/elsewhere" && cd "$work/elsewhere"
export AUTOKERNEL_CACHE="$work/cache"
cat >tiny_model.py <<'MODEL'
"""Two RMSNorms around a softmax: small enough to profile in seconds."""
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.first = nn.Parameter(torch.ones(width))
        self.second = nn.Parameter(torch.ones(width))

    def norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def forward(self, x):
        return self.norm(torch.softmax(self.norm(x, self.first), dim=-1), self.second)


def get_inputs():
    return [torch.randn(2048, 256)]


def get_init_inputs():
    return []
MODEL

autokernel=$work/venv/bin/autokernel
"$autokernel" --version
"$autokernel" list
"$autokernel" doctor
"$autokernel" run tiny_model.py --device cpu --budget 60s --max-experiments 3
"$autokernel" report
"$autokernel" report --json | "$work/venv/bin/python" -c '
import json, sys
report = json.load(sys.stdin)
assert report["experiments"] >= 1, report
assert report["targets"], report
'
test -s results/*/results.tsv
test -s results/*/report.md
test -s results/*/progress.png
echo "the wheel works in an empty environment"
