"""Writes off_policy_reference.json: small logs, and what the Open Bandit Pipeline (obp 0.5.7) makes of them.

obp does not install beside what the other tests need (old numpy, torch), so its values are recorded. To make them anew:

    python3 -m venv reference && reference/bin/pip install --no-deps --ignore-requires-python obp==0.5.7
    reference/bin/pip install 'numpy<2' scikit-learn pandas scipy
    reference/bin/python tests/unit/off_policy_reference.py
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
BOOTSTRAP = {"alpha": 0.05, "n_bootstrap_samples": 5000, "random_state": 1}


def estimators() -> types.ModuleType:
    """obp.ope.estimators without the rest of obp, which would import torch for learning policies."""
    found = importlib.util.find_spec("obp")
    assert found is not None
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    for name, folder in (("obp", root), ("obp.ope", root / "ope")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    torch = types.ModuleType("torch")
    torch.Tensor = torch.tensor = type("Tensor", (), {})
    sys.modules["torch"] = torch
    return importlib.import_module("obp.ope.estimators")


def log(seed: int, n: int, arms: int, least: float, contexts: int, continuous: bool) -> dict[str, object]:
    """A log whose numbers are short, so that JSON holds them exactly."""
    draws = np.random.default_rng(seed)
    context = draws.normal(size=(n, max(1, contexts))).round(3)
    propensity = np.maximum(draws.dirichlet(np.ones(arms), size=n), least)
    propensity = (propensity / propensity.sum(axis=1, keepdims=True)).round(6)
    chosen = np.array([draws.choice(arms, p=row / row.sum()) for row in propensity])
    mean = 1 / (1 + np.exp(-(context[:, 0] * np.linspace(-1, 1, arms)[chosen] + 0.3 * chosen)))
    reward = draws.normal(mean, 0.3).round(4) if continuous else (draws.random(n) < mean).astype(float)
    policy = draws.dirichlet(np.ones(arms) / 2, size=n).round(6)
    policy[:, -1] = 1 - policy[:, :-1].sum(axis=1)
    return {
        "arms": chosen.tolist(), "rewards": reward.tolist(), "propensities": propensity[np.arange(n), chosen].tolist(),
        "contexts": context.tolist() if contexts else None, "policy": policy.clip(0).tolist(),
        "predictions": draws.random((n, arms)).round(4).tolist(),
    }  # fmt: skip


def main() -> None:
    ope = estimators()
    cases = {
        "two arms": log(1, 150, 2, 0.2, 0, False),
        "five arms with contexts": log(2, 150, 5, 0.05, 3, True),
        "tiny propensities": log(3, 150, 3, 0.002, 1, False),
    }
    for case in cases.values():
        given = {
            "reward": np.array(case["rewards"]), "action": np.array(case["arms"]),
            "pscore": np.array(case["propensities"]), "action_dist": np.array(case["policy"])[:, :, None],
            "estimated_rewards_by_reg_model": np.array(case["predictions"])[:, :, None],
        }  # fmt: skip
        case["obp"] = {}
        for name, kind in (
            ("ips", ope.InverseProbabilityWeighting), ("snips", ope.SelfNormalizedInverseProbabilityWeighting),
            ("dr", ope.DoublyRobust),
        ):  # fmt: skip
            interval = kind().estimate_interval(**given, **BOOTSTRAP)
            case["obp"][name] = {
                "value": float(kind().estimate_policy_value(**given)),
                "low": float(interval["95.0% CI (lower)"]), "high": float(interval["95.0% CI (upper)"]),
            }  # fmt: skip
    FILE.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
